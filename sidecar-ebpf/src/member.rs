//! Who the current task belongs to.

use sidecar_common::settings::{Cgroup, ROLE_EXCLUDED};

use crate::{
    context::{ancestor_cgroup, read},
    maps::CGROUPS,
};

/// Levels of the cgroup hierarchy that are searched; Kubernetes uses 3 to 5.
const CGROUP_LEVELS: i32 = 12;

/// The workload and the role of the current task: the deepest enrolled cgroup counts, so that a proxy inside
/// its workload's cgroup is told apart, and an excluded one is nobody's.
#[inline(always)]
pub fn member_of_current() -> Option<Cgroup> {
    // None, which no role is: an `Option` would leave words unwritten that the verifier might find read.
    let mut member = Cgroup {
        workload: 0,
        role: 0,
    };
    let mut level = 1;
    while level <= CGROUP_LEVELS {
        let id = ancestor_cgroup(level);
        if id == 0 {
            break;
        }
        if let Some(cgroup) = CGROUPS.get_ptr(&id) {
            member = read(cgroup);
        }
        level += 1;
    }
    (member.role != 0 && member.role != ROLE_EXCLUDED).then_some(member)
}
