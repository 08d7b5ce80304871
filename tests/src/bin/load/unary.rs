//! A gRPC server for unary calls, over HTTP/2 without TLS: the answer is the message that came.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use clap::Args;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use sidecar_tests::output::say;
use tokio::{
    net::{TcpListener, TcpStream},
    task::LocalSet,
};

#[derive(Args)]
pub struct Unary {
    /// Where to listen; may be given several times
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
}

impl Unary {
    pub fn run(self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        LocalSet::new().block_on(&runtime, self.serve())
    }

    async fn serve(self) -> Result<()> {
        for address in self.listen {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("{address}"))?;
            tokio::task::spawn_local(async move {
                loop {
                    // Out of descriptors, or gone again: the load generator tells.
                    if let Ok((socket, _)) = listener.accept().await {
                        tokio::task::spawn_local(connection(socket));
                    }
                }
            });
        }
        say("listening")?;
        std::future::pending().await
    }
}

/// One client; one that breaks off is its own business.
async fn connection(socket: TcpStream) -> Result<()> {
    socket.set_nodelay(true)?;
    let mut connection = h2::server::handshake(socket).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        tokio::task::spawn_local(answer(request, respond));
    }
    Ok(())
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<()> {
    let mut body = request.into_body();
    let mut message = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        message.extend_from_slice(&data);
    }
    let response = Response::builder()
        .header("content-type", "application/grpc")
        .body(())?;
    let mut stream = respond.send_response(response, false)?;
    stream.send_data(message.freeze(), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    Ok(stream.send_trailers(trailers)?)
}
