//! Enrolment: a sidecar without privilege asks the node's agent to attach for it.
//!
//! One Unix socket, one connection for as long as the sidecar runs. The sidecar says what shall be steered and how, and
//! hands its inbound listener over by descriptor; who it is, in which pod and which network namespace, the agent finds
//! out from the kernel. Nothing that is said can make it touch another pod.
//!
//! # Layout
//!
//! - [`message`], what is said; [`wire`], how it travels, with descriptors
//! - [`caller`], who calls; [`pod`], which cgroup is the pod's
//! - [`agent`], the agent's side: connections and their limits, of which `rate` is one; [`state`], the pods of the node
//! - [`proxy`], the sidecar's side; [`foreign`], proxies that have none

pub mod agent;
pub mod caller;
pub mod foreign;
pub mod message;
pub mod pod;
pub mod proxy;
mod rate;
pub mod state;
pub mod wire;

/// Where the agent listens unless told otherwise. In pods the directory is mounted, not the socket: a new agent makes a
/// new one.
pub const DEFAULT_SOCKET: &str = "/run/sidecar/agent.sock";
