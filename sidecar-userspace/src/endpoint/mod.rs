//! What listens beside the connections that are proxied: admin, the webhook, the sockets of the node's agent. Where they listen, how
//! they accept, and HTTP/1.1 on what they accept.

pub mod answer;

use std::{
    convert::Infallible, fs, io, os::unix::fs::PermissionsExt, path::Path, sync::Arc,
    time::Duration,
};

use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
    task,
};

use self::answer::Answer;

/// Not a busy loop when there are no descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// For the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// As many connections as come: whoever reaches the listener is trusted, or the connections count themselves.
pub const UNBOUNDED: usize = Semaphore::MAX_PERMITS;

/// Where streams come from.
pub trait Listener {
    type Stream;

    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>>;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        Ok(self.accept().await?.0)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}

/// Serves a listener until its future is dropped, `at_once` connections at a time; those that it has are served on. `whose`:
/// the connections, for the log. Needs a local task set.
pub async fn accept<L: Listener, F: Future<Output = ()> + 'static>(
    listener: L,
    whose: &'static str,
    at_once: usize,
    serve: impl Fn(L::Stream) -> F,
) -> Infallible {
    let places = Arc::new(Semaphore::new(at_once));
    loop {
        // Others wait in the kernel's queue. Never fails, since nobody closes the semaphore.
        let place = places.clone().acquire_owned().await;
        match listener.next().await {
            Ok(stream) => {
                let served = serve(stream);
                task::spawn_local(async move {
                    served.await;
                    drop(place);
                });
                // A flood must not keep the others from their turn.
                task::yield_now().await;
            }
            Err(error) => {
                tracing::warn!(whose, %error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Answers the requests of a connection until it ends.
pub async fn http1<F: Future<Output = Answer>>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: impl Fn(Request<Incoming>) -> F,
) {
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection of HTTP/1.1 failed");
    }
}

/// A Unix socket with the permissions `mode`, in place of a former one at once.
///
/// # Errors
///
/// That name the path.
pub fn unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let failed = |error: io::Error| {
        let path = path.display();
        io::Error::new(error.kind(), format!("cannot listen on {path}: {error}"))
    };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    // The kubelet, which watches the directory of some, passes over names with a dot before them.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}.new"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&new).map_err(failed)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::pending, rc::Rc};

    use tokio::{
        task::LocalSet,
        time::{Instant, timeout},
    };

    use super::*;

    /// Fails a number of times, then gives streams.
    struct Failing(Cell<usize>);

    impl Listener for Failing {
        type Stream = ();

        async fn next(&self) -> io::Result<()> {
            match self.0.get() {
                0 => Ok(()),
                left => {
                    self.0.set(left - 1);
                    Err(io::ErrorKind::OutOfMemory.into())
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn errors_are_survived_at_a_pace() {
        let (served, start) = (Cell::new(0), Instant::now());
        let serve = |()| {
            served.set(served.get() + 1);
            pending()
        };
        let accepting = accept(Failing(Cell::new(3)), "test", 2, serve);
        let bounded = timeout(PAUSE * 4, accepting);
        assert!(LocalSet::new().run_until(bounded).await.is_err());
        assert_eq!(start.elapsed(), PAUSE * 4);
        // The errors have kept no place, and those that do not end keep theirs.
        assert_eq!(served.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_ends_makes_room() {
        let (now, most, served) = (Rc::new(Cell::new(0)), Cell::new(0), Cell::new(0));
        let serve = |()| {
            now.set(now.get() + 1);
            most.set(most.get().max(now.get()));
            served.set(served.get() + 1);
            let now = now.clone();
            async move {
                tokio::time::sleep(PAUSE).await;
                now.set(now.get() - 1);
            }
        };
        let bounded = timeout(
            PAUSE * 4 + PAUSE / 2,
            accept(Failing(Cell::new(0)), "test", 3, serve),
        );
        assert!(LocalSet::new().run_until(bounded).await.is_err());
        assert_eq!(most.get(), 3);
        assert_eq!(served.get(), 15);
    }

    #[tokio::test]
    async fn a_socket_takes_the_place_of_a_former_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep").join("a.sock");
        let _former = unix(&path, 0o600).unwrap();
        let listener = unix(&path, 0o666).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
        let _client = UnixStream::connect(&path).await.unwrap();
        listener.next().await.unwrap();
        let left = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(left, 1);
    }
}
