//! HTTP through the proxy with the clients and servers that people use.

mod bulk;
mod curl;
mod grpc;
pub mod programs;
mod websocket;
