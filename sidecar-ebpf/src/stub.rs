//! Step relay: what is attached to `FLOWS`. A socket keeps the program that the map had when it entered it, so that
//! another one attached there would reach no connection that exists. This one never changes; what it calls does.

use aya_ebpf::{macros::sk_msg, programs::SkMsgContext};

use crate::{context::tail_call, maps::RELAYS, relay::SK_PASS};

/// Where nothing is to be called, after `sidecar agent uninstall`, messages take TCP.
#[sk_msg]
pub fn relay_stub(ctx: SkMsgContext) -> u32 {
    tail_call(&ctx, &RELAYS);
    SK_PASS
}
