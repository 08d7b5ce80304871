//! What the kubelet asks of the driver: who it is, and volumes at the places that it names.

use bytes::Bytes;
use prost::Message;

use super::{
    DRIVER,
    grpc::{Code, Service, Status, decode},
    message::{
        BoolValue, Empty, GetPluginInfoResponse, NodeGetInfoResponse, NodePublishVolumeRequest,
        NodeUnpublishVolumeRequest, ProbeResponse,
    },
    volume::{VolumeError, Volumes},
};

/// Says whether a volume is a pod's own; there where the `CSIDriver` has `podInfoOnMount`.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";

/// The services `csi.v1.Identity` and `csi.v1.Node`.
#[derive(Debug)]
pub struct Driver {
    volumes: Volumes,
}

impl Driver {
    pub fn new(volumes: Volumes) -> Self {
        Self { volumes }
    }

    fn publish(&self, request: &NodePublishVolumeRequest) -> Result<(), Status> {
        named(&request.volume_id)?;
        let refused = |why: &str| Err(Status::new(Code::InvalidArgument, why));
        let Some(capability) = &request.volume_capability else {
            return refused("a volume capability is needed");
        };
        if capability.block.is_some() || capability.mount.is_none() {
            return refused(
                "the volume is a directory, no device: volumeMode Block is not possible",
            );
        }
        if request
            .volume_context
            .get(EPHEMERAL)
            .is_some_and(|ephemeral| ephemeral != "true")
        {
            return refused(
                "there are only volumes of a pod's own: say `csi` in the pod, without a claim",
            );
        }
        Ok(self.volumes.publish(&request.target_path)?)
    }

    fn unpublish(&self, request: &NodeUnpublishVolumeRequest) -> Result<(), Status> {
        named(&request.volume_id)?;
        Ok(self.volumes.unpublish(&request.target_path)?)
    }
}

fn named(volume: &str) -> Result<(), Status> {
    match volume {
        "" => Err(Status::new(Code::InvalidArgument, "a volume id is needed")),
        _ => Ok(()),
    }
}

impl From<VolumeError> for Status {
    fn from(error: VolumeError) -> Self {
        let code = match error {
            VolumeError::Place(_) | VolumeError::Indirect(_) => Code::InvalidArgument,
            VolumeError::Missing(_) | VolumeError::Occupied(_) => Code::FailedPrecondition,
            VolumeError::Io { .. } => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}

impl Service for Driver {
    fn call(&self, method: &str, message: Bytes) -> Result<Vec<u8>, Status> {
        let answer = match method {
            "/csi.v1.Identity/GetPluginInfo" => GetPluginInfoResponse {
                name: DRIVER.to_owned(),
                vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            }
            .encode_to_vec(),
            "/csi.v1.Identity/Probe" => ProbeResponse {
                ready: Some(BoolValue { value: true }),
            }
            .encode_to_vec(),
            // None: no controller, no topology; nothing is staged, expanded or measured.
            "/csi.v1.Identity/GetPluginCapabilities" | "/csi.v1.Node/NodeGetCapabilities" => {
                Empty {}.encode_to_vec()
            }
            "/csi.v1.Node/NodeGetInfo" => NodeGetInfoResponse {
                node_id: rustix::system::uname()
                    .nodename()
                    .to_string_lossy()
                    .into_owned(),
            }
            .encode_to_vec(),
            "/csi.v1.Node/NodePublishVolume" => {
                self.publish(&decode(message)?)?;
                Empty {}.encode_to_vec()
            }
            "/csi.v1.Node/NodeUnpublishVolume" => {
                self.unpublish(&decode(message)?)?;
                Empty {}.encode_to_vec()
            }
            other => {
                return Err(Status::new(
                    Code::Unimplemented,
                    format!("no method {other}"),
                ));
            }
        };
        Ok(answer)
    }
}
