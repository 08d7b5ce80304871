//! Frames over a Unix socket, with descriptors beside them.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::{
    io::Interest,
    net::UnixStream,
    time::{Instant, timeout, timeout_at},
};

use super::message::{self, HEADER_BYTES, MAX_DESCRIPTORS, MessageError};

/// A frame that has begun must be complete within this, and one that is written must be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// Read at once: memory follows what has come, not what was announced.
const CHUNK_BYTES: usize = 16 * 1024;

#[derive(Debug, Error)]
pub enum WireError {
    #[error("the connection has ended")]
    Closed,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Message(#[from] MessageError),
    #[error("the peer is too slow")]
    Slow,
    #[error("more descriptors than anybody may send")]
    Descriptors,
}

/// One side of a connection.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    /// Of the frame that is being read.
    read: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    /// When the frame that is being read must be complete.
    deadline: Option<Instant>,
    /// Descriptors that are taken with one message.
    most: usize,
}

impl Wire {
    /// `most`: descriptors that the peer may send with a message.
    pub fn new(stream: UnixStream, most: usize) -> Self {
        Self {
            stream,
            read: Vec::new(),
            descriptors: Vec::new(),
            deadline: None,
            most: most.min(MAX_DESCRIPTORS),
        }
    }

    /// Whether a part of the next message is there already.
    pub fn has_begun(&self) -> bool {
        !self.read.is_empty()
    }

    /// The next message and the descriptors that came with it. May be dropped and called again without losing anything.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<(T, Vec<OwnedFd>), WireError> {
        loop {
            let wanted = match self.read.first_chunk::<HEADER_BYTES>() {
                None => HEADER_BYTES,
                Some(header) => HEADER_BYTES + message::length(*header)?,
            };
            if self.read.len() >= HEADER_BYTES && self.read.len() == wanted {
                let message = message::decode(self.read.get(HEADER_BYTES..).unwrap_or_default());
                self.read = Vec::new();
                self.deadline = None;
                return Ok((message?, std::mem::take(&mut self.descriptors)));
            }
            let missing = wanted - self.read.len();
            let deadline = self.deadline;
            let some = self.some(missing.min(CHUNK_BYTES));
            match deadline {
                None => some.await?,
                Some(deadline) => timeout_at(deadline, some)
                    .await
                    .map_err(|_| WireError::Slow)??,
            }
            self.deadline
                .get_or_insert_with(|| Instant::now() + PATIENCE);
        }
    }

    /// Reads at most `most` bytes more.
    async fn some(&mut self, most: usize) -> Result<(), WireError> {
        let Self {
            stream,
            read,
            descriptors,
            most: most_descriptors,
            ..
        } = self;
        let (count, cut) = stream
            .async_io(Interest::READABLE, || {
                // Here, so that a connection that waits holds no buffer.
                let mut bytes = [0; CHUNK_BYTES];
                let bytes = bytes.get_mut(..most).unwrap_or_default();
                receive_some(stream.as_fd(), bytes, read, descriptors)
            })
            .await?;
        if cut || descriptors.len() > *most_descriptors {
            return Err(WireError::Descriptors);
        }
        match count {
            0 => Err(WireError::Closed),
            _ => Ok(()),
        }
    }

    /// Sends a message, with descriptors beside its first byte. Not to be dropped half-way. To a peer that has gone it is
    /// no error: what that said before, such as why it went, is still to be received, and after it comes the end.
    pub async fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        let frame = message::encode(message)?;
        let all = async {
            let mut sent = 0;
            while let Some(rest) = frame.get(sent..).filter(|rest| !rest.is_empty()) {
                let beside = if sent == 0 { descriptors } else { &[] };
                sent += self
                    .stream
                    .async_io(Interest::WRITABLE, || {
                        send_some(self.stream.as_fd(), rest, beside)
                    })
                    .await?;
            }
            Ok::<_, WireError>(())
        };
        match timeout(PATIENCE, all).await.map_err(|_| WireError::Slow)? {
            Err(WireError::Io(error)) if has_gone(&error) => Ok(()),
            sent => sent,
        }
    }
}

fn has_gone(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::BrokenPipe | K::ConnectionReset)
}

/// How many bytes came, and whether there were more descriptors than fit.
fn receive_some(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    read: &mut Vec<u8>,
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<(usize, bool)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut beside, flags)?;
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    read.extend_from_slice(bytes.get(..received.bytes).unwrap_or_default());
    Ok((received.bytes, received.flags.contains(ReturnFlags::CTRUNC)))
}

fn send_some(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut beside, flags)?)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::enrol::message::{Listeners, Reply, Request};

    #[tokio::test]
    async fn descriptors_travel_with_their_message() {
        let (a, b) = UnixStream::pair().unwrap();
        let (a, mut b) = (Wire::new(a, 0), Wire::new(b, 2));
        let listeners: Vec<_> = (0..2)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let said = Request::Listeners(Listeners {
            workers: 1,
            outbound: 1,
        });
        let fds: Vec<_> = listeners.iter().map(|l| l.as_fd()).collect();
        a.send(&said, &fds).await.unwrap();
        a.send(&Request::TakeOver, &[]).await.unwrap();
        let (heard, fds) = b.receive::<Request>().await.unwrap();
        assert_eq!((heard, fds.len()), (said, 2));
        for (fd, listener) in fds.into_iter().zip(&listeners) {
            let same = TcpListener::from(fd).local_addr().unwrap();
            assert_eq!(same, listener.local_addr().unwrap());
        }
        let (heard, fds) = b.receive::<Request>().await.unwrap();
        assert_eq!((heard, fds.len()), (Request::TakeOver, 0));
        drop(a);
        assert!(matches!(
            b.receive::<Request>().await,
            Err(WireError::Closed)
        ));
    }

    #[tokio::test]
    async fn a_refusal_before_the_question_is_heard() {
        let reason = "not from there".to_owned();
        // With and without something that the peer left unread.
        for unread in [false, true] {
            let (a, b) = UnixStream::pair().unwrap();
            let (mut a, b) = (Wire::new(a, 0), Wire::new(b, 0));
            if unread {
                a.send(&Request::TakeOver, &[]).await.unwrap();
            }
            let refused = Reply::Refused {
                reason: reason.clone(),
            };
            b.send(&refused, &[]).await.unwrap();
            drop(b);
            a.send(&Request::TakeOver, &[]).await.unwrap();
            let (heard, _) = a.receive::<Reply>().await.unwrap();
            assert_eq!(heard, refused);
        }
    }

    #[tokio::test]
    async fn more_descriptors_than_allowed_are_refused() {
        let (a, b) = UnixStream::pair().unwrap();
        let (a, mut b) = (Wire::new(a, 0), Wire::new(b, 1));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fds = [listener.as_fd(); 2];
        a.send(&Request::TakeOver, &fds).await.unwrap();
        let heard = b.receive::<Request>().await;
        assert!(matches!(heard, Err(WireError::Descriptors)), "{heard:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_does_not_end_is_given_up() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut b = Wire::new(b, 0);
        a.write_all(b"SCR\x01\x10\0\0\0{").await.unwrap();
        let heard = b.receive::<Request>().await;
        assert!(matches!(heard, Err(WireError::Slow)), "{heard:?}");
    }
}
