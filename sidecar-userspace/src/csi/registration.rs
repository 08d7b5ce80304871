//! How the kubelet learns of the driver: it finds the socket in its plugins_registry and asks what it is.

use std::path::Path;

use bytes::Bytes;
use prost::Message;
use tracing::{error, info};

use super::{
    DRIVER,
    grpc::{Code, Service, Status, decode},
    message::{Empty, PluginInfo, RegistrationStatus},
};

/// Of the driver at an endpoint.
#[derive(Debug)]
pub struct Registration {
    endpoint: String,
}

impl Registration {
    pub fn new(endpoint: &Path) -> Self {
        Self {
            endpoint: endpoint.display().to_string(),
        }
    }
}

impl Service for Registration {
    fn call(&self, method: &str, message: Bytes) -> Result<Vec<u8>, Status> {
        match method {
            "/pluginregistration.Registration/GetInfo" => {
                let info = PluginInfo {
                    kind: "CSIPlugin".to_owned(),
                    name: DRIVER.to_owned(),
                    endpoint: self.endpoint.clone(),
                    // Of CSI.
                    supported_versions: vec!["1.0.0".to_owned()],
                };
                Ok(info.encode_to_vec())
            }
            "/pluginregistration.Registration/NotifyRegistrationStatus" => {
                let status: RegistrationStatus = decode(message)?;
                match status.plugin_registered {
                    true => info!(driver = DRIVER, "registered with the kubelet"),
                    false => {
                        error!(
                            driver = DRIVER,
                            reason = status.error,
                            "the kubelet refuses the driver: pods that ask for its volume do not start"
                        );
                    }
                }
                Ok(Empty {}.encode_to_vec())
            }
            other => Err(Status::new(
                Code::Unimplemented,
                format!("no method {other}"),
            )),
        }
    }
}
