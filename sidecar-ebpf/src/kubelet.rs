//! Probes of the kubelet reach the application without its proxy: they cannot prove an identity. They are known by the
//! cgroup that the connecting process is in, so that nobody else on the node, nor at its address, is let through.

use aya_ebpf::{macros::sock_ops, programs::SockOpsContext};
use sidecar_common::{
    address::Address,
    flow::{FlowKey, KubeletConnection},
};

use crate::{
    context::{Ends, Operation, now_ns, read, update},
    maps::{KUBELET_CONNECTIONS, KUBELET_CONNECTIONS_LOST},
    sockops::{STATE, TCP_CLOSE, TCP_CONNECT},
};

/// For the kubelet's own cgroup: notes its connections before the first packet of each, until they close.
#[sock_ops]
pub fn kubelet_sockops(ctx: SockOpsContext) -> u32 {
    let _ = match ctx.op() {
        TCP_CONNECT => connecting(&ctx),
        STATE if ctx.arg(1) == TCP_CLOSE => closed(&ctx),
        _ => None,
    };
    1
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext) -> Option<()> {
    let flow = ctx.flow().peer().between_networks();
    if flow.netns != 0 {
        // Loopback: never a pod's.
        return None;
    }
    // Else it would stay for ever, for whoever has the port next.
    ctx.watch_close()?;
    let noted = KubeletConnection {
        owner: ctx.cookie(),
        since_ns: now_ns(),
    };
    if KUBELET_CONNECTIONS.insert(&flow, &noted, 0).is_err() {
        update(KUBELET_CONNECTIONS_LOST.get_ptr_mut(0)?, |lost| *lost += 1);
    }
    Some(())
}

#[inline(always)]
fn closed(ctx: &SockOpsContext) -> Option<()> {
    let key = ctx.flow().peer().between_networks();
    if read(KUBELET_CONNECTIONS.get_ptr(&key)?).owner == ctx.cookie() {
        let _ = KUBELET_CONNECTIONS.remove(&key);
    }
    Some(())
}

/// Whether the connection that arrives comes from the kubelet.
#[inline(always)]
pub fn is_of_kubelet(local: Address, remote: Address) -> bool {
    let key = FlowKey {
        netns: 0,
        local,
        remote,
    };
    // One whose end no hook has told stays for a while, and its port may be another process's.
    KUBELET_CONNECTIONS.get_ptr(&key).is_some_and(|noted| {
        now_ns().wrapping_sub(read(noted).since_ns) < KubeletConnection::FRESH_NS
    })
}
