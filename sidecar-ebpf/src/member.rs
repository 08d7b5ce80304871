//! Who the current task belongs to.

use sidecar_common::settings::{Cgroup, ROLE_EXCLUDED};

use crate::{
    context::{Packet, ancestor_cgroup, read},
    maps::CGROUPS,
};

/// Levels of the cgroup hierarchy that are searched; Kubernetes uses 3 to 5.
const CGROUP_LEVELS: i32 = 12;

/// The workload and the role of the current task: the deepest enrolled cgroup counts, so that a proxy inside
/// its workload's cgroup is told apart, and an excluded one is nobody's.
#[inline(always)]
pub fn member_of_current() -> Option<Cgroup> {
    deepest(ancestor_cgroup)
}

/// As above, of the socket that sends a packet: whoever runs now may have nothing to do with it.
#[inline(always)]
pub fn member_of_sender(packet: &Packet) -> Option<Cgroup> {
    deepest(|level| packet.ancestor_cgroup(level))
}

/// `ancestor`: the id of the cgroup at a level below the root, or 0.
#[inline(always)]
fn deepest(ancestor: impl Fn(i32) -> u64) -> Option<Cgroup> {
    let mut member = None;
    let mut level = 1;
    while level <= CGROUP_LEVELS {
        let id = ancestor(level);
        if id == 0 {
            break;
        }
        if let Some(cgroup) = CGROUPS.get_ptr(&id) {
            member = Some(read(cgroup));
        }
        level += 1;
    }
    member.filter(|cgroup| cgroup.role != ROLE_EXCLUDED)
}
