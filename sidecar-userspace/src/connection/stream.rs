//! A TCP stream with bytes in front that were read already, safe to use on sockets that the kernel half redirects.
//!
//! tokio's own `poll_read` takes a read shorter than its buffer for an empty socket and waits for the next edge
//! of epoll. A socket in the kernel's SOCKHASH has two queues (redirected messages, and TCP's); a read returns
//! from one of them, so that a short read says nothing about the other and the edge may have passed. Here a
//! socket counts as empty only when the kernel said `EAGAIN`; when it is asked, [`super::doubt`] says.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use rustix::net::{RecvFlags, recv};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use super::{
    doubt::{Doubt, Doubts},
    send_window::SendWindow,
};

/// The client's or the destination's stream.
#[derive(Debug)]
pub struct Stream {
    tcp: TcpStream,
    /// Read from the socket before (by detection) and not yet by the owner.
    prefix: Bytes,
    /// For what is written.
    window: SendWindow,
    /// `None`: the kernel is asked after each read.
    doubt: Option<Arc<Doubt>>,
}

impl Stream {
    pub fn new(tcp: TcpStream) -> Self {
        Self::with_prefix(tcp, Bytes::new())
    }

    /// `prefix`: what was read already; it comes first.
    pub fn with_prefix(tcp: TcpStream, prefix: Bytes) -> Self {
        Self {
            tcp,
            prefix,
            window: SendWindow::default(),
            doubt: None,
        }
    }

    /// Puts `bytes` in front of what is still to be read.
    pub fn prepend(&mut self, bytes: Bytes) {
        self.prefix = match self.prefix.is_empty() {
            true => bytes,
            false => [bytes, std::mem::take(&mut self.prefix)].concat().into(),
        };
    }

    /// After a read that comes short the question whether there is more is put off. Whoever finds that a message is complete
    /// says so to what this returns.
    pub fn put_off(&mut self, doubts: &Doubts) -> Arc<Doubt> {
        self.doubt.insert(doubts.of_socket()).clone()
    }

    /// Takes back [`Self::put_off`].
    pub fn hasten(&self) {
        if let Some(doubt) = &self.doubt {
            doubt.hasten();
        }
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// The socket, and the bytes that were read from it and not yet given out.
    pub fn into_parts(self) -> io::Result<(TcpStream, Bytes)> {
        let tcp = match self.doubt {
            Some(doubt) if doubt.is_open() => register_anew(self.tcp)?,
            _ => self.tcp,
        };
        Ok((tcp, self.prefix))
    }

    /// The socket, of which nothing more will be read.
    pub fn into_tcp(self) -> TcpStream {
        self.tcp
    }

    /// After a read that gave something: what was written before may have been read.
    fn heard(&mut self, cx: &Context<'_>) {
        if self.window.ask_again() {
            cx.waker().wake_by_ref();
        }
    }

    /// After a read.
    fn note(&self, buf: &ReadBuf<'_>, before: usize) {
        let Some(doubt) = &self.doubt else {
            return;
        };
        if buf.remaining() == 0 || buf.filled().len() == before {
            doubt.resolve();
            return;
        }
        doubt.raise();
        // Edges are taken in by this thread only, and none was since the read: what comes later is not missed.
        let _ = self.tcp.try_io(Interest::READABLE, || {
            Err::<(), _>(io::ErrorKind::WouldBlock.into())
        });
    }

    /// Reads where no edge has announced anything, if it is time to ask.
    fn poll_doubt(&self, cx: &Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(doubt) = self.doubt.as_ref().filter(|doubt| doubt.asks(cx)) else {
            return Poll::Pending;
        };
        let before = buf.filled().len();
        match recv(&self.tcp, buf.initialize_unfilled(), RecvFlags::DONTWAIT) {
            Ok((_, read)) => {
                buf.advance(read.min(buf.remaining()));
                // As long as reads are filled it is asked again: tokio takes the socket for empty.
                if buf.remaining() > 0 {
                    self.note(buf, before);
                }
                Poll::Ready(Ok(()))
            }
            Err(rustix::io::Errno::AGAIN) => {
                doubt.resolve();
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    /// Makes the peer see a reset, not an end of stream.
    pub fn reset(self) {
        reset(self.tcp);
    }
}

/// tokio takes a socket in doubt for empty. Registered anew, epoll says whether it is. If that fails, the socket is reset.
fn register_anew(tcp: TcpStream) -> io::Result<TcpStream> {
    tcp.set_zero_linger()?;
    let tcp = TcpStream::from_std(tcp.into_std()?)?;
    SockRef::from(&tcp).set_linger(None)?;
    Ok(tcp)
}

/// Closes the socket with RST. Data that was not yet sent is lost, which is the point: a truncated stream must
/// not look like a complete one.
pub fn reset(tcp: TcpStream) {
    // Fails only on a socket that is gone already.
    let _ = tcp.set_zero_linger();
    drop(tcp);
}

/// Writes what there is room for, without tokio's own `poll_write`, which takes a short write for a full socket: on a
/// socket in the SOCKHASH that says nothing, as with reading.
pub fn poll_write(
    cx: &mut Context<'_>,
    tcp: &TcpStream,
    window: &mut SendWindow,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    let granted = ready!(window.poll(cx, tcp, bytes.len()));
    let bytes = bytes.get(..granted).unwrap_or(bytes);
    poll_writing(cx, tcp, window, |tcp| tcp.try_write(bytes))
}

fn poll_writing(
    cx: &mut Context<'_>,
    tcp: &TcpStream,
    window: &mut SendWindow,
    write: impl Fn(&TcpStream) -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        match write(tcp) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(written) => {
                window.spend(written);
                return Poll::Ready(Ok(written));
            }
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self::new(tcp)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.has_remaining() {
            let take = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix.split_to(take));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        loop {
            match self.tcp.poll_read_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => return self.poll_doubt(cx, buf),
            }
            match self.tcp.try_read_buf(buf) {
                Ok(_) => {
                    self.note(buf, before);
                    self.heard(cx);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Some(doubt) = &self.doubt {
                        doubt.resolve();
                    }
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        poll_write(cx, &this.tcp, &mut this.window, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        let granted = ready!(this.window.poll(cx, &this.tcp, wanted));
        if granted >= wanted {
            return poll_writing(cx, &this.tcp, &mut this.window, |tcp| {
                tcp.try_write_vectored(bufs)
            });
        }
        let first = bufs.iter().find(|buf| !buf.is_empty());
        let first = first.map_or(&[][..], |buf| buf);
        let some = first.get(..granted).unwrap_or(first);
        poll_writing(cx, &this.tcp, &mut this.window, |tcp| tcp.try_write(some))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        runtime::LocalRuntime,
        time::timeout,
    };

    use super::*;

    /// A stream whose socket holds `missed`, of which the edge has passed: as when both queues were filled at once and one
    /// of them was read.
    async fn with_missed_edge(doubts: &Doubts) -> (Stream, Arc<Doubt>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (peer, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let mut peer = peer.unwrap();
        peer.write_all(b"missed").await.unwrap();
        let mut stream = Stream::new(accepted.unwrap().0);
        let doubt = stream.put_off(doubts);
        stream.tcp.readable().await.unwrap();
        // Until nothing more is announced.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut space = [0; 8];
        let mut buf = ReadBuf::new(&mut space);
        buf.put_slice(b"short");
        stream.note(&buf, 0);
        (stream, doubt, peer)
    }

    async fn read(stream: &mut Stream) -> Vec<u8> {
        let mut bytes = [0; 64];
        let read = timeout(Duration::from_secs(5), stream.read(&mut bytes));
        let read = read.await.expect("the bytes are never found").unwrap();
        bytes[..read].to_vec()
    }

    fn play<F: Future<Output = ()>>(test: impl FnOnce(Doubts) -> F) {
        LocalRuntime::new()
            .unwrap()
            .block_on(test(Doubts::default()));
    }

    #[test]
    fn what_is_owed_is_asked_for_when_others_have_run() {
        play(async |doubts| {
            let (mut stream, _doubt, _peer) = with_missed_edge(&doubts).await;
            let start = std::time::Instant::now();
            assert_eq!(read(&mut stream).await, b"missed");
            assert!(start.elapsed() < Duration::from_millis(40));
        });
    }

    #[test]
    fn what_is_not_owed_is_found_later() {
        play(async |doubts| {
            let (mut stream, doubt, _peer) = with_missed_edge(&doubts).await;
            doubt.message_done();
            let start = std::time::Instant::now();
            assert_eq!(read(&mut stream).await, b"missed");
            assert!(start.elapsed() >= Duration::from_millis(40));
        });
    }

    #[test]
    fn what_was_missed_is_read_to_its_end() {
        play(async |doubts| {
            let (mut stream, _doubt, _peer) = with_missed_edge(&doubts).await;
            let mut missed = [0; 6];
            for byte in &mut missed {
                let read = timeout(
                    Duration::from_secs(5),
                    stream.read(std::slice::from_mut(byte)),
                );
                assert_eq!(read.await.expect("the rest is never found").unwrap(), 1);
            }
            assert_eq!(&missed, b"missed");
        });
    }

    #[test]
    fn an_edge_answers_the_question() {
        play(async |doubts| {
            let (mut stream, doubt, mut peer) = with_missed_edge(&doubts).await;
            doubt.message_done();
            peer.write_all(b", and more").await.unwrap();
            let start = std::time::Instant::now();
            assert_eq!(read(&mut stream).await, b"missed, and more");
            assert!(start.elapsed() < Duration::from_millis(40));
            // Read short again: nothing more is there, and the end is announced.
            drop(peer);
            assert_eq!(read(&mut stream).await, b"");
        });
    }

    #[test]
    fn the_hasty_ask_at_once() {
        play(async |doubts| {
            let (mut stream, doubt, _peer) = with_missed_edge(&doubts).await;
            doubt.message_done();
            stream.hasten();
            let mut bytes = [0; 64];
            let mut buf = ReadBuf::new(&mut bytes);
            let read = poll_fn(|cx| Poll::Ready(Pin::new(&mut stream).poll_read(cx, &mut buf)));
            assert!(read.await.is_ready());
            assert_eq!(buf.filled(), b"missed");
        });
    }

    #[test]
    fn a_socket_that_is_handed_on_is_asked_anew() {
        play(async |doubts| {
            let (stream, _doubt, _peer) = with_missed_edge(&doubts).await;
            let (tcp, prefix) = stream.into_parts().unwrap();
            assert!(prefix.is_empty());
            let readable = timeout(Duration::from_secs(5), tcp.readable());
            readable.await.expect("the edge is lost").unwrap();
            assert_eq!(SockRef::from(&tcp).linger().unwrap(), None);
        });
    }
}
