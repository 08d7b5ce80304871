//! Who the current task belongs to, and whose a socket is that bears no mark.

use sidecar_common::settings::{Cgroup, MAX_WORKLOADS, ROLE_APPLICATION, ROLE_EXCLUDED};

use crate::{
    context::{Packet, ancestor_cgroup, read},
    lookup::LOOKUP_WORKLOAD,
    maps::{CGROUPS, NAMESPACES, WORKLOADS},
};

/// Levels of the cgroup hierarchy that are searched; Kubernetes uses 3 to 5.
const CGROUP_LEVELS: i32 = 12;

/// The workload and the role of the current task: the deepest enrolled cgroup counts, so that a proxy inside
/// its workload's cgroup is told apart, and an excluded one is nobody's.
#[inline(always)]
pub fn member_of_current() -> Option<Cgroup> {
    member(known_of_current())
}

/// What is known, unless that is nothing, or that it is nobody's.
#[inline(always)]
fn member(known: Cgroup) -> Option<Cgroup> {
    (known.role != 0 && known.role != ROLE_EXCLUDED).then_some(known)
}

/// What is said of the deepest cgroup of the current task of which anything is said.
#[inline(always)]
fn known_of_current() -> Cgroup {
    deepest(ancestor_cgroup)
}

/// As `member_of_current`, of the socket that sends a packet: whoever runs now may have nothing to do with it.
#[inline(always)]
pub fn member_of_sender(packet: &Packet) -> Option<Cgroup> {
    member(deepest(|level| packet.ancestor_cgroup(level)))
}

/// `ancestor`: the id of the cgroup at a level below the root, or 0. Not an `Option`: the compiler would copy what it does not
/// hold, which the verifier refuses.
#[inline(always)]
fn deepest(ancestor: impl Fn(i32) -> u64) -> Cgroup {
    let mut known = Cgroup::default();
    let mut level = 1;
    while level <= CGROUP_LEVELS {
        let id = ancestor(level);
        if id == 0 {
            break;
        }
        if let Some(cgroup) = CGROUPS.get_ptr(&id) {
            known = read(cgroup);
        }
        level += 1;
    }
    known
}

/// Whose a socket is of which nothing is noted. A role of 0: it cannot be told. An enrolment of 0: the workload is not steered.
///
/// A program runs where the *socket* was made; the task that uses it now may be anybody's: of another pod or of the node, to
/// which it was handed, or the kernel's own. The workload to which the program is attached is told by the network namespace, and
/// all that the task decides is who it is within that workload.
#[inline(always)]
pub fn owner(netns: u64) -> Cgroup {
    let task = known_of_current();
    let attached = LOOKUP_WORKLOAD.load();
    let workload = if attached < MAX_WORKLOADS {
        // Loaded for one workload.
        attached
    } else {
        match NAMESPACES.get_ptr(&netns) {
            Some(workload) => read(workload),
            // One that a process of the workload has made for itself.
            None => return task,
        }
    };
    if task.role != 0 && task.workload == workload {
        return task;
    }
    Cgroup {
        workload,
        role: ROLE_APPLICATION,
        enrolment: WORKLOADS
            .get(workload)
            .map_or(0, |workload| workload.enrolment),
    }
}
