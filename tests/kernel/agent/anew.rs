//! A pod that is attached anew, because its sidecar is in another network namespace now: if that fails, what was there stays.

use anyhow::ensure;
use sidecar_tests::world::{Agent, Pod, Settings, World, programs};

use super::{ENROL, SOON, connects};

/// Leaves no room in its network namespace for another sk_lookup program, and then says what a sidecar says.
const FULL: &str = r#"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def bpf(command, attributes):
    b = ctypes.create_string_buffer(attributes, 128)
    r = libc.syscall(321, command, b, 128)
    if r < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return r
SK_LOOKUP, ATTACH = 30, 36
def instruction(code, dst, imm): return struct.pack("=BBhi", code, dst, 0, imm)
code = instruction(0xb7, 0, 1) + instruction(0x95, 0, 0)
text, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
program = bpf(5, struct.pack("=IIQQIIQII16sII", SK_LOOKUP, 2, ctypes.addressof(text), ctypes.addressof(licence),
                             0, 0, 0, 0, 0, b"other", 0, ATTACH))
here, links = os.open("/proc/self/ns/net", os.O_RDONLY), []
try:
    while True: links.append(bpf(28, struct.pack("=IIII", program, here, ATTACH, 0)))
except OSError: pass
assert links, "nothing could be attached at all"
listener = socket.create_server(("127.0.0.1", 0))
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
print("answer", enrol(s, {"name": "a", "failRule": "closed", "inboundCapture": "workload"}, listener), flush=True)
sys.stdin.read()
"#;

#[test]
fn a_failure_leaves_the_pod_as_it_was() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let server = world.workload("server")?;
        let to = server.v4(7000).to_string();
        let _echo = server.serving("echo", &["echo", "--listen", &to])?;
        let pod = Pod::enrolled(&agent, "a", &Settings::default())?;
        ensure!(connects(&pod, &to)?, "it does not work to begin with");
        let elsewhere = world.workload("elsewhere")?;
        let program = format!("{ENROL}{FULL}");
        let socket = agent.socket().display().to_string();
        let proxy = pod.workload.cgroup().join("proxy");
        let python = programs::packaged("python3", "python3")?;
        let mut second =
            elsewhere.start_in(&proxy, "second", python, &["-c", &program, &socket])?;
        let answer = second.line_within("answer", SOON)?;
        ensure!(
            answer.contains("refused") && answer.contains("cannot attach"),
            "it did not fail: {answer}"
        );
        let before = agent.kernel_events("a", "steered")?;
        for _ in 0..3 {
            ensure!(connects(&pod, &to)?, "the pod is cut off");
        }
        let steered = agent.kernel_events("a", "steered")? - before;
        ensure!(steered == 3, "{steered} connections were steered, not 3");
        Ok(())
    });
}
