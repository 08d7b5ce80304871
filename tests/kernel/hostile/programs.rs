//! Other BPF programs on the same cgroups: neither breaks the other.

use anyhow::ensure;
use sidecar_tests::world::{Agent, Pod, World, wait};

use super::{GREET, SOON, application, call_from, open, python};

/// Attaches a sock_ops program to the cgroup, which asks for calls of its own and for no others. Argument: the cgroup.
pub const SOCK_OPS: &str = r#"
import ctypes, os, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def bpf(command, attributes):
    b = ctypes.create_string_buffer(attributes, 128)
    r = libc.syscall(321, command, b, 128)
    if r < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return r
def instruction(code, dst, src, off, imm): return struct.pack("=BBhi", code, dst | src << 4, off, imm)
RTT_CB = 8
# bpf_sock_ops_cb_flags_set(ctx, RTT_CB); return 1
code = b"".join([instruction(0xb7, 2, 0, 0, RTT_CB), instruction(0x85, 0, 0, 0, 59),
                 instruction(0xb7, 0, 0, 0, 1), instruction(0x95, 0, 0, 0, 0)])
text, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
program = bpf(5, struct.pack("=IIQQIIQII16sII", 13, len(code) // 8, ctypes.addressof(text),
                             ctypes.addressof(licence), 0, 0, 0, 0, 0, b"other", 0, 3))
link = bpf(28, struct.pack("=IIII", program, os.open(sys.argv[1], os.O_RDONLY), 3, 0))
print("attached", flush=True)
time.sleep(600)
"#;

#[test]
fn another_sock_ops_program_leaves_nothing_behind() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let a = Pod::enrolled(&agent, "a", &open())?;
        let b = Pod::enrolled(&agent, "b", &open())?;
        let above = world.cgroup().display().to_string();
        let beside = world.workload("c")?;
        let mut other = python(&beside, beside.cgroup(), "other", SOCK_OPS, &[&above])?;
        other.line_within("attached", SOON)?;
        let mut server = application(&b, "greet", GREET, &["0.0.0.0", "8080", "6"])?;
        server.line_within("listening", SOON)?;
        for _ in 0..10 {
            let said = call_from(&a.workload, &a.app(), b.v4(8080))?;
            ensure!(said.contains("hello"), "{said}");
        }
        drop(server);
        // What no hook has told is found by looking.
        wait::until_true("the maps to be empty", SOON, || {
            let inspected = agent.inspect()?;
            let layouts = inspected["entries"].as_object().into_iter().flatten();
            let left = layouts.flat_map(|(_, maps)| {
                ["HALF_FLOWS", "HANDOVERS", "DIALS", "PAIRINGS"].map(|name| maps[name].as_u64())
            });
            Ok(left.flatten().sum::<u64>() == 0)
        })
    });
}
