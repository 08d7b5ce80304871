//! The socket directory as a volume of Kubernetes: a CSI driver for ephemeral inline volumes, since the `restricted` Pod
//! Security Standard allows those and no `hostPath`.
//!
//! A pod says `csi: { driver: agent.sidecar.internal, readOnly: true }`, and gets the directory of the agent's socket, read-only,
//! where it mounts the volume. That is all that this driver can do; nothing that a pod says changes what is mounted. A
//! volume outlives the agent: it is a mount of a directory in which each agent makes its socket.
//!
//! # Layout
//!
//! - [`message`], what the kubelet and we say, as far as it is looked at
//! - [`grpc`], calls of one message each way, on HTTP/2; [`authority`], so that HTTP/2 takes the kubelet's calls
//! - [`registration`], how the kubelet learns of the driver; [`node`], what it asks of it
//! - [`volume`], the mounts

pub mod authority;
pub mod grpc;
pub mod message;
pub mod node;
pub mod registration;
pub mod volume;

use std::{
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use tokio::task::spawn_local;
use tracing::info;

use self::{node::Driver, registration::Registration, volume::Volumes};
use crate::endpoint::unix;

/// Permissions of the sockets: nobody but the kubelet calls.
const FOR_ROOT: u32 = 0o600;

/// Name of the driver; what a `CSIDriver` object is called, and pods say.
pub const DRIVER: &str = "agent.sidecar.internal";

/// Sockets that serve while this lives; then they are removed, so that the kubelet knows that the driver is gone.
#[derive(Debug)]
pub struct Served {
    sockets: Vec<PathBuf>,
}

/// Serves the kubelet whose directory is `kubelet` (usually /var/lib/kubelet), which has the same path here as for the kubelet
/// itself. `directory`: what pods get. Needs a local task set.
pub fn serve(kubelet: &Path, directory: &Path) -> io::Result<Served> {
    let endpoint = kubelet.join("plugins").join(DRIVER).join("csi.sock");
    let registry = kubelet
        .join("plugins_registry")
        .join(format!("{DRIVER}-reg.sock"));
    let volumes = Volumes::new(directory, &kubelet.join("pods"))?;
    let plugin = unix(&endpoint, FOR_ROOT)?;
    // Last: from here on the kubelet calls the other one.
    let registration = unix(&registry, FOR_ROOT)?;
    let driver = Rc::new(Driver::new(volumes));
    spawn_local(grpc::serve(plugin, driver));
    let registered = Rc::new(Registration::new(&endpoint));
    spawn_local(grpc::serve(registration, registered));
    info!(driver = DRIVER, endpoint = %endpoint.display(), "serves the kubelet as a CSI driver");
    Ok(Served {
        sockets: vec![registry, endpoint],
    })
}

impl Drop for Served {
    fn drop(&mut self) {
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}
