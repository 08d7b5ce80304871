//! What is asked of Kubernetes' API server, over HTTPS with the service account of the pod. A handful of calls: no client
//! library.

pub mod api;
pub mod taint;

pub use api::{Api, ApiError};
