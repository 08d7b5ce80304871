//! cgroup/getsockopt and setsockopt of the application: what it says of the device that a TCP socket shall be bound to is
//! remembered, and asked for, here.
//!
//! A socket that is bound to a device could not connect to the proxy, which is on another one, and only CAP_NET_RAW may take
//! the binding back. So the kernel is not told before it is known what becomes of the socket: a connection that is steered
//! needs no binding, since the proxy's own gets it; one that is left alone, and a listener, are bound then.

use aya_ebpf::{btf_maps::lpm_trie::Key, macros::cgroup_sockopt, programs::SockoptContext};
use sidecar_common::{
    address::Ip,
    settings::{DEVICE_NAME_BYTES, Device, DeviceKey, WORKLOAD_ENROLLED},
    socket_state::SocketState,
};

use crate::{
    context::{DeviceName, SocketOption},
    maps::{DEVICES, SOCKETS, WORKLOADS},
    sockops::TCP_CLOSE,
};

const ALLOW: i32 = 1;
const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;
const SO_BINDTOIFINDEX: i32 = 62;

/// Bits of a [`DeviceKey`].
const WHOLE_KEY: u32 = 192;

/// To no device.
pub const NO_DEVICE: DeviceName = [0; DEVICE_NAME_BYTES];

#[cgroup_sockopt(setsockopt)]
pub fn device_setsockopt(ctx: SockoptContext) -> i32 {
    let _ = try_setsockopt(&ctx);
    ALLOW
}

/// Remembers the device instead of the kernel, if that is one which userspace has seen.
#[inline(always)]
fn try_setsockopt(ctx: &SockoptContext) -> Option<()> {
    let (level, name) = ctx.name();
    if level != SOL_SOCKET || (name != SO_BINDTODEVICE && name != SO_BINDTOIFINDEX) {
        return None;
    }
    let socket = ctx.socket()?;
    let state = SOCKETS.get(socket)?;
    // One that is steered already would be cut off from its proxy.
    let undecided = socket.state() == TCP_CLOSE || state.is(SocketState::STEERED);
    if state.flags & (SocketState::PROXY | SocketState::MULTIPATH) != 0
        || !undecided
        || socket.device() != 0
    {
        return None;
    }
    let workload = WORKLOADS.get(state.workload)?;
    if workload.flags & WORKLOAD_ENROLLED == 0 || workload.outbound_port == 0 {
        return None;
    }
    let mut key = DeviceKey {
        workload: state.workload,
        ..DeviceKey::default()
    };
    if name == SO_BINDTOIFINDEX {
        key.index = u32::from_ne_bytes(*ctx.value::<4>()?);
    } else {
        key.name = ctx.device_name();
    }
    state.device = if key.index == 0 && key.name[0] == 0 {
        0
    } else {
        DEVICES.get(&Key::new(WHOLE_KEY, key))?.index
    };
    ctx.taken();
    Some(())
}

#[cgroup_sockopt(getsockopt)]
pub fn device_getsockopt(ctx: SockoptContext) -> i32 {
    let _ = try_getsockopt(&ctx);
    ALLOW
}

#[inline(always)]
fn try_getsockopt(ctx: &SockoptContext) -> Option<()> {
    let (level, name) = ctx.name();
    if level != SOL_SOCKET || (name != SO_BINDTODEVICE && name != SO_BINDTOIFINDEX) {
        return None;
    }
    let state = SOCKETS.get(ctx.socket()?)?;
    if state.device == 0 || state.is(SocketState::PROXY) {
        return None;
    }
    if name == SO_BINDTOIFINDEX {
        *ctx.value::<4>()? = state.device.to_ne_bytes();
        ctx.answered(4);
        return Some(());
    }
    let device = name_of(state)?;
    let value = ctx.value::<DEVICE_NAME_BYTES>()?;
    let mut length = 0;
    let mut i = 0;
    while i < DEVICE_NAME_BYTES {
        value[i] = device[i];
        if device[i] != 0 {
            length = i as i32 + 1;
        }
        i += 1;
    }
    // With the zero that ends it, as the kernel gives it.
    ctx.answered(length + 1);
    Some(())
}

/// The device that a socket is to be bound to, if userspace has seen it.
#[inline(always)]
fn of(state: &SocketState) -> Option<&'static Device> {
    let key = DeviceKey {
        workload: state.workload,
        index: state.device,
        name: NO_DEVICE,
    };
    DEVICES.get(&Key::new(WHOLE_KEY, key))
}

#[inline(always)]
pub fn name_of(state: &SocketState) -> Option<DeviceName> {
    of(state).map(|device| device.name)
}

/// The source address of what leaves by the device that a socket is to be bound to.
#[inline(always)]
pub fn source(state: &SocketState, v4: bool) -> Option<Ip> {
    let device = of(state)?;
    Some(if v4 { device.v4 } else { device.v6 })
}
