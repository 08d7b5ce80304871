//! Large bodies: whole, in flat memory, and no faster than the reader.

use std::{
    fs,
    io::{self, Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use crate::proxy::world::{World, server};

const GIB: u64 = 1 << 30;
const CHUNK: usize = 1 << 16;
/// Of the whole test process, proxy included.
const MAX_MEMORY_BYTES: u64 = 256 << 20;

#[test]
fn a_gibibyte_down_and_a_gibibyte_up() {
    let address = server(|mut stream| {
        // The proxy may send both requests over one connection.
        while stream.peek(&mut [0]).is_ok_and(|bytes| bytes > 0) {
            let head = read_head(&mut stream);
            if head.starts_with("GET") {
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {GIB}\r\n\r\n");
                stream.write_all(answer.as_bytes()).unwrap();
                send(&mut stream, GIB);
            } else {
                expect(&mut stream, GIB);
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(answer).unwrap();
            }
        }
    });
    let world = World::new(address);
    let mut down = world.connect();
    down.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    assert!(read_head(&mut down).starts_with("HTTP/1.1 200"));
    expect(&mut down, GIB);
    let mut up = world.connect();
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {GIB}\r\n\r\n");
    up.write_all(head.as_bytes()).unwrap();
    send(&mut up, GIB);
    assert!(read_head(&mut up).starts_with("HTTP/1.1 200"));
    let peak = peak_memory_bytes();
    assert!(peak < MAX_MEMORY_BYTES, "{peak} bytes of memory");
}

#[test]
fn a_reader_that_stops_stops_the_writer() {
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let address = server(move |mut stream| {
        read_head(&mut stream);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .unwrap();
        let chunk = [b"10000\r\n", &[b'x'; CHUNK][..], b"\r\n"].concat();
        while stream.write_all(&chunk).is_ok() {
            counter.fetch_add(CHUNK as u64, Ordering::Relaxed);
        }
    });
    let world = World::new(address);
    let mut client = world.connect();
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let mut before = u64::MAX;
    // Until it stands still: what the kernel's buffers and the proxy's took.
    while before != sent.load(Ordering::Relaxed) || before == 0 {
        before = sent.load(Ordering::Relaxed);
        thread::sleep(Duration::from_millis(500));
        assert!(
            before == u64::MAX || before < 64 << 20,
            "{before} bytes without a reader"
        );
    }
    // And it goes on when the reader does.
    let mut sink = vec![0; CHUNK];
    while sent.load(Ordering::Relaxed) < before + (16 << 20) {
        assert!(client.read(&mut sink).unwrap() > 0);
    }
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn pattern() -> Vec<u8> {
    (0..CHUNK).map(|at| (at * 31 % 251) as u8).collect()
}

fn send(stream: &mut TcpStream, bytes: u64) {
    let chunk = pattern();
    for _ in 0..bytes / CHUNK as u64 {
        stream.write_all(&chunk).unwrap();
    }
}

fn expect(stream: &mut TcpStream, bytes: u64) {
    let (wanted, mut chunk) = (pattern(), vec![0; CHUNK]);
    for number in 0..bytes / CHUNK as u64 {
        read_exact(stream, &mut chunk)
            .unwrap_or_else(|error| panic!("after {number} chunks: {error}"));
        assert!(chunk == wanted, "chunk {number} changed on its way");
    }
}

fn read_exact(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    stream.read_exact(buffer)
}

fn peak_memory_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}
