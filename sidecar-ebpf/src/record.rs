//! Step record: counters per workload, events, and who the current task belongs to.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use sidecar_common::{
    address::Address,
    record::{COUNTERS as COUNTER_SLOTS, Counter, EVENT_SPLICE, Event},
    settings::{Cgroup, ROLE_EXCLUDED, ROLE_PROXY, WORKLOAD_PROXY_SPLICES, WORKLOAD_SPLICES},
};

use crate::{
    context::{SystemCall, TUNABLES, ancestor_cgroup, current_pid, entry, now_ns, read, update},
    maps::{CGROUPS, COUNTERS, EVENTS, WORKLOADS},
};

/// Levels of the cgroup hierarchy that are searched; Kubernetes uses 3 to 5.
const CGROUP_LEVELS: i32 = 12;

/// How long after the first splice its events are sent.
const CAUGHT_NS: u64 = 10_000_000_000;

/// Adds `amount` to a counter of a workload.
#[inline(always)]
pub fn count(workload: u32, counter: Counter, amount: u64) {
    let index = counter as usize;
    if let Some(counters) = COUNTERS.get_ptr_mut(workload)
        && index < COUNTER_SLOTS
    {
        update(counters, |c| {
            c.counts[index] = c.counts[index].wrapping_add(amount)
        });
    }
}

/// Tells userspace; dropped when nobody reads fast enough. It does not say which process it was: before Linux 6.10 only
/// some types of program may ask that, and those that packets run would name whomever they interrupted.
#[inline(always)]
pub fn event(kind: u32, workload: u32, fd: i32, address: Address) {
    send(kind, workload, 0, fd, address);
}

/// As `event`, for hooks in a system call that may ask whose it is: cgroup/connect and tracing.
#[inline(always)]
pub fn event_of_task(kind: u32, workload: u32, fd: i32, address: Address) {
    send(kind, workload, current_pid(), fd, address);
}

/// `fd`: for splice.
#[inline(always)]
fn send(kind: u32, workload: u32, pid: u32, fd: i32, address: Address) {
    let event = Event {
        kind,
        workload,
        pid,
        fd,
        address,
        _pad: 0,
    };
    let _ = EVENTS.output(&event, 0);
}

/// The workload and the role of the current task: the deepest enrolled cgroup counts, so that a proxy inside
/// its workload's cgroup is told apart, and an excluded one is nobody's.
#[inline(always)]
pub fn member_of_current() -> Option<Cgroup> {
    let mut member = None;
    let mut level = 1;
    while level <= CGROUP_LEVELS {
        let id = ancestor_cgroup(level);
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

/// `splice(2)` reads a socket's TCP queue only and would never see redirected bytes: the workload that uses it
/// gets none from then on.
///
/// Whatever reads a TCP queue comes by here, whether it finds anything or not; what reads redirected bytes does not.
#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
pub fn record_splice(_ctx: BtfTracePointContext) -> i32 {
    let _ = try_splice();
    0
}

#[inline(always)]
fn try_splice() -> Option<()> {
    let call = SystemCall::current();
    if call.number()? != TUNABLES.load().splice_number {
        return None;
    }
    let member = member_of_current()?;
    let fd = call.first_argument()? as i32;
    let workload = entry(WORKLOADS.get_ptr_mut(member.workload)?);
    let now_ns = now_ns();
    let splices = if member.role == ROLE_PROXY {
        WORKLOAD_PROXY_SPLICES
    } else {
        WORKLOAD_SPLICES
    };
    if workload.flags & splices == 0 {
        workload.splices_since_ns = now_ns;
        workload.flags |= splices;
        count(member.workload, Counter::Splice, 1);
    }
    // Flows that hold redirected bytes already are the ones in trouble: userspace looks at each socket that is
    // read so in the beginning.
    if now_ns - workload.splices_since_ns < CAUGHT_NS {
        event_of_task(EVENT_SPLICE, member.workload, fd, Address::default());
    }
    Some(())
}
