//! HTTP through the proxy with the clients and servers that people use.

mod bulk;
mod curl;
mod grpc;
mod programs;
mod websocket;
