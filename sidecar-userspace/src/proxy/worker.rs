//! A worker thread: its listeners, and all that its connections share.

use std::{io, rc::Rc};

use tokio::{net::TcpListener, runtime::LocalRuntime, sync::watch, task};

use super::end_when;
use crate::{
    connection::{
        self, Direction, Shared, Worker,
        accept::{self, Accepted},
        listen::WorkerListeners,
    },
    lifecycle::{drain::Phase, readiness::Token},
};

/// What a worker thread starts from.
pub(super) struct Seed {
    pub number: usize,
    pub shared: Shared,
    pub listeners: WorkerListeners,
    pub ready: Token,
    pub accepts_no_more: watch::Receiver<bool>,
}

impl Seed {
    pub fn run(self, runtime: &LocalRuntime) {
        let Self {
            number,
            shared,
            listeners,
            ready,
            accepts_no_more,
        } = self;
        runtime.block_on(async move {
            let drain = shared.drain.clone();
            let worker = Rc::new(Worker::new(number, shared));
            let inbound = std::iter::once((Direction::Inbound, listeners.inbound));
            let outbound = listeners
                .outbound
                .into_iter()
                .map(|listener| (Direction::Outbound, listener));
            let listeners: io::Result<Vec<_>> = inbound
                .chain(outbound)
                .map(|(direction, listener)| Ok((direction, TcpListener::from_std(listener)?)))
                .collect();
            match listeners {
                Ok(listeners) => {
                    let accepting = listeners.into_iter().map(|(direction, listener)| {
                        task::spawn_local(listen(listener, direction, worker.clone()))
                    });
                    end_when(accepts_no_more, accepting.collect());
                    ready.done();
                }
                Err(error) => tracing::error!(%error, number, "a worker cannot use its listeners"),
            }
            drain.reached(Phase::Ended).await;
        });
        // The runtime is dropped by the caller, and with it the tasks of connections that are left: they reset
        // their sockets and record why.
    }
}

async fn listen(listener: TcpListener, direction: Direction, worker: Rc<Worker>) {
    let serve = |accepted: Accepted| {
        drop(task::spawn_local(connection::serve(
            accepted,
            worker.clone(),
        )))
    };
    match accept::accept(listener, direction, worker.clone(), serve).await {}
}
