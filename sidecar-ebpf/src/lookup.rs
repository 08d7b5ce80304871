//! sk_lookup: connections from elsewhere are handed to the proxy.

use aya_ebpf::{Global, macros::sk_lookup, programs::SkLookupContext};
use sidecar_common::{
    address::Address,
    flow::{FlowKey, Rendezvous},
    record::{Counter, EVENT_INBOUND_REFUSED},
    settings::{INBOUND, LISTENING_EXCLUDED, ListeningKey, Workload},
};
use sidecar_ebpf::decide::{self, Inbound, Port};

use crate::{
    connect::port_rule,
    context::{now_ns, packet, read, update},
    counters::{count, event},
    kubelet::is_of_kubelet,
    maps::{CLOSED_UNTIL, DIALS, HANDOVERS, LISTENERS, LISTENING, PAIRINGS, WORKLOADS},
    sock_create::TCP,
};

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;

/// Whose inbound connections this instance of `lookup` steers: sk_lookup programs know no cgroup. In an object that serves several
/// workloads no number of one.
#[unsafe(no_mangle)]
pub static LOOKUP_WORKLOAD: Global<u32> = Global::new(0);

/// Hands new connections for the workload's ports to the proxy's inbound listener. Addresses stay as they are.
#[sk_lookup]
pub fn lookup_inbound(ctx: SkLookupContext) -> u32 {
    try_lookup(&ctx).unwrap_or(SK_PASS)
}

#[inline(always)]
fn try_lookup(ctx: &SkLookupContext) -> Option<u32> {
    let (protocol, local, remote) = packet(ctx);
    if protocol != TCP {
        return None;
    }
    let id = LOOKUP_WORKLOAD.load();
    let workload: &Workload = WORKLOADS.get(id)?;
    let flow = FlowKey::new(workload.netns, local, remote);
    if let Some(record) = PAIRINGS.get_ptr_mut(&flow.between_networks()) {
        mark_local(record);
    }
    if let Some(record) = DIALS.get(id).and_then(|own| own.get_ptr_mut(&flow)) {
        mark_local(record);
        // The proxy's own connection, whatever its addresses: handed to the proxy again it would go round for ever.
        return Some(SK_PASS);
    }
    let steered = || {
        HANDOVERS
            .get(id)
            .is_some_and(|left| left.get_ptr(&flow).is_some())
    };
    if local.ip.is_loopback() && steered() {
        // Steered to the proxy, from a socket that is bound to another address.
        return Some(SK_PASS);
    }
    let rule = port_rule(id, INBOUND, local.port);
    let verdict = decide::inbound(workload, local.ip, remote.ip, port(id, local), rule);
    if verdict == Inbound::Leave {
        return None;
    }
    if is_of_kubelet(local, remote) {
        count(id, Counter::KubeletProbe, 1);
        return Some(SK_PASS);
    }
    if verdict == Inbound::Closed {
        count(id, Counter::InboundClosed, 1);
        return Some(SK_DROP);
    }
    if LISTENERS.redirect_sk_lookup(ctx, id, 0).is_ok() {
        count(id, Counter::Inbound, 1);
        Some(SK_PASS)
    } else if decide::fail_closed(workload) {
        count(id, Counter::InboundRefused, 1);
        event(EVENT_INBOUND_REFUSED, id, local);
        Some(SK_DROP)
    } else {
        count(id, Counter::InboundBypassed, 1);
        Some(SK_PASS)
    }
}

/// Whether anybody listens there, as far as that is known.
#[inline(always)]
fn port(workload: u32, local: Address) -> Port {
    let Some(own) = LISTENING.get(workload) else {
        return Port::Unknown;
    };
    let port = u32::from(local.port);
    let exactly = ListeningKey { ip: local.ip, port };
    let anywhere = ListeningKey {
        ip: local.ip.any(),
        port,
    };
    let believed = CLOSED_UNTIL
        .get(workload)
        .is_some_and(|until| now_ns() < *until);
    for place in [exactly, anywhere] {
        if let Some(noted) = own.get_ptr(&place) {
            return match (read(noted) & LISTENING_EXCLUDED, believed) {
                (0, _) => Port::Open,
                (_, true) => Port::Excluded,
                (_, false) => Port::Unknown,
            };
        }
    }
    if believed {
        Port::Closed
    } else {
        Port::Unknown
    }
}

/// A connecting socket of this node finds here, before it is established, that its other end is on this node
/// too: only then does it belong into the SOCKHASH.
#[inline(always)]
fn mark_local(record: *mut Rendezvous) {
    update(record, |r: &mut Rendezvous| r.flags |= Rendezvous::LOCAL);
}
