//! tp_btf/tcp_rcv_space_adjust: who reads sockets with `splice(2)`.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use sidecar_common::{
    address::Address,
    record::{Counter, EVENT_SPLICE},
    settings::ROLE_PROXY,
};

use crate::{
    context::{LOAD_CONSTANTS, SystemCall, entry, now_ns},
    counters::{count, event_of_task},
    enrolment::enrolled,
    maps::ACCOUNTS,
    member::member_of_current,
};

/// How long after the first splice its events are sent.
const CAUGHT_NS: u64 = 10_000_000_000;

/// `splice(2)` reads a socket's TCP queue only and would never see redirected bytes: the workload that uses it
/// gets none from then on.
///
/// Whatever reads a TCP queue comes by here, whether it finds anything or not; what reads redirected bytes does not.
#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
pub fn trace_splice(_ctx: BtfTracePointContext) -> i32 {
    let _ = try_splice();
    0
}

#[inline(always)]
fn try_splice() -> Option<()> {
    let call = SystemCall::current();
    if call.number()? != LOAD_CONSTANTS.load().splice_number {
        return None;
    }
    let member = member_of_current()?;
    let fd = call.first_argument()? as i32;
    enrolled(member.workload, member.enrolment)?;
    let account = entry(ACCOUNTS.get_ptr_mut(member.workload)?);
    let now_ns = now_ns();
    let since_ns = if member.role == ROLE_PROXY {
        &mut account.proxy_splices_ns
    } else {
        &mut account.application_splices_ns
    };
    if *since_ns == 0 {
        *since_ns = now_ns;
        count(member.workload, Counter::Splice, 1);
    }
    // Flows that hold redirected bytes already are the ones in trouble: userspace looks at each socket that is
    // read so in the beginning.
    if now_ns - *since_ns < CAUGHT_NS {
        event_of_task(EVENT_SPLICE, member.workload, fd, Address::default());
    }
    Some(())
}
