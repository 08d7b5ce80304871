//! tp_btf/tcp_rcv_space_adjust: who reads sockets with `splice(2)`.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use sidecar_common::{
    flow::FlowKey,
    record::Counter,
    settings::{WORKLOAD_PROXY_SPLICES, WORKLOAD_SPLICES},
    socket_state::SocketState,
};
use sidecar_ebpf::evidence::Tcp;

use crate::{
    context::{SystemCall, entry, traced},
    counters::{count, event_of_splice},
    enrolment::workload_of,
    maps::{ACCOUNTS, SOCKETS},
};

/// `splice(2)` reads a socket's TCP queue only and would never see redirected bytes: the workload that uses it
/// gets none from then on.
///
/// Whatever reads a TCP queue comes by here, whether it finds anything or not. An ordinary read of a socket in the map does so
/// only when nothing redirected waits there. So who comes by while something does splices, whichever way: by the system call of
/// another architecture, or by io_uring. `splice(2)` itself is known by its number before that.
#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
pub fn trace_splice(ctx: BtfTracePointContext) -> i32 {
    let _ = try_splice(&ctx);
    0
}

/// Runs under the socket's lock, which its reader holds.
#[inline(always)]
fn try_splice(ctx: &BtfTracePointContext) -> Option<()> {
    let socket = traced(ctx)?;
    let state = SOCKETS.get(socket)?;
    let call = SystemCall::current();
    // Two threads that read one socket may get in each other's way between the look at the queue and the read.
    let blind =
        state.is(SocketState::IN_MAP) && !call.reads() && !socket.traced_tcp().ingress_is_empty();
    if !blind && !call.splices() {
        return None;
    }
    workload_of(state)?;
    let account = entry(ACCOUNTS.get_ptr_mut(state.workload)?);
    let splices = if state.is(SocketState::PROXY) {
        WORKLOAD_PROXY_SPLICES
    } else {
        WORKLOAD_SPLICES
    };
    let first = account.splices & splices == 0;
    if first {
        account.splices |= splices;
        count(state.workload, Counter::Splice, 1);
    }
    if blind {
        // Userspace resets the connection, which would hang.
        event_of_splice(state.workload, state.cookie, state.flow);
    } else if first {
        event_of_splice(state.workload, 0, FlowKey::default());
    }
    Some(())
}
