//! The control thread: it answers the admin endpoints, follows what changes, and runs the drain.

use std::{convert::Infallible, sync::Arc};

use tokio::{
    net::TcpListener,
    runtime::LocalRuntime,
    sync::{mpsc, watch},
    task,
};

use super::end_when;
use crate::{
    config::watch::SnapshotHandle,
    connection::{accept::Places, listen::AdminListeners},
    jwt,
    lifecycle::{drain::Drain, thrift},
    telemetry::{
        access_log::AccessLog,
        admin::{self, Admin, Scope},
    },
};

/// The thread that answers the admin endpoints and runs the drain.
pub(super) struct Control {
    pub admin: AdminListeners,
    pub told: Arc<Admin>,
    pub drain: Drain,
    pub quit_asked: mpsc::Receiver<()>,
    pub snapshot: Arc<SnapshotHandle>,
    pub log: AccessLog,
    pub places: Places,
    pub ended: watch::Sender<bool>,
    pub accepts_no_more: watch::Receiver<bool>,
}

impl Control {
    pub fn run(self, runtime: &LocalRuntime) {
        let Self {
            admin,
            told,
            drain,
            mut quit_asked,
            snapshot,
            log,
            places,
            ended,
            accepts_no_more,
        } = self;
        runtime.block_on(async move {
            let endpoints = [
                (admin.admin, Scope::Admin),
                (admin.metrics, Scope::Metrics),
                (admin.health, Scope::Health),
            ];
            let mut answering = Vec::new();
            for (listener, scope) in endpoints {
                match TcpListener::from_std(listener) {
                    Ok(listener) => {
                        let serve = admin::serve(listener, scope, told.clone());
                        answering.push(task::spawn_local(async move { match serve.await {} }));
                    }
                    Err(error) => {
                        tracing::error!(%error, ?scope, "an admin endpoint cannot be served")
                    }
                }
            }
            let fetch = jwt::remote::follow(told.metrics.clone());
            end_when(accepts_no_more, answering);
            let follow = follow_configuration(snapshot.clone(), log);
            tokio::select! {
                _ = quit_asked.recv() => {}
                never = follow => match never {},
                never = refresh_keys() => match never {},
                never = thrift::keep(|| places.taken()) => match never {},
                never = fetch => match never {},
            }
            let patience = snapshot.load().timeouts.drain;
            tracing::info!(?patience, "draining");
            let clean = drain.run(patience).await;
            tracing::info!(clean, "drained");
            ended.send_replace(true);
        });
    }
}

/// Applies what a reload may change beside the snapshot that connections take.
async fn follow_configuration(snapshot: Arc<SnapshotHandle>, log: AccessLog) -> Infallible {
    let mut changes = snapshot.subscribe();
    while changes.changed().await.is_ok() {
        log.configure(&snapshot.load().access_log);
    }
    std::future::pending().await
}

/// Follows the files of keys for tokens. Reading them may take long, on a slow disk: never on the control thread.
async fn refresh_keys() -> Infallible {
    loop {
        tokio::time::sleep(jwt::keys::REFRESH).await;
        // It panics only if reading does, and then the next turn tries again.
        let _ = task::spawn_blocking(jwt::keys::refresh).await;
    }
}
