//! What the demo's client, curl, asks for and gets.

use super::world::World;
use crate::{leftovers, process, signals};
use anyhow::{Context as _, Result, bail, ensure};
use std::{net::IpAddr, net::SocketAddr, process::Command, time::Duration};

/// The served file.
pub const BODY: &str = "Hello from a server that knows nothing of a proxy.\n";
/// What curl says of each request: status, seconds in all, the peer as `getpeername` gives it, body bytes, new connections.
const WRITE_OUT: &str =
    "%{http_code} %{time_total} %{remote_ip} %{remote_port} %{size_download} %{num_connects}\\n";

/// The requests, and what curl said of them.
pub struct Requests<'a> {
    world: &'a World,
    port: u16,
    done: Vec<Answer>,
}

/// What curl said of one request.
#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    latency: Duration,
    /// The peer's address as the application sees it.
    peer: SocketAddr,
    body_bytes: usize,
    new_connections: u32,
}

impl<'a> Requests<'a> {
    pub fn new(world: &'a World, port: u16) -> Self {
        Self {
            world,
            port,
            done: Vec::new(),
        }
    }

    /// `count` requests, each by a curl of its own.
    ///
    /// # Errors
    /// If one fails or its answer is not what the server sent.
    pub fn one_connection_each(&mut self, server: IpAddr, count: usize) -> Result<()> {
        for _ in 0..count {
            for answer in self.curl(server, 1)? {
                println!(
                    "      GET {}  {}  {} bytes  {:.2} ms",
                    self.url(server),
                    answer.status,
                    answer.body_bytes,
                    milliseconds(answer.latency)
                );
                self.done.push(answer);
            }
        }
        Ok(())
    }

    /// `count` requests over one connection.
    ///
    /// # Errors
    /// If one fails, its answer is not what the server sent, or the connection was not kept.
    pub fn one_connection_for_all(&mut self, server: IpAddr, count: usize) -> Result<()> {
        let answers = self.curl(server, count)?;
        let connections: u32 = answers.iter().map(|answer| answer.new_connections).sum();
        ensure!(
            connections == 1,
            "curl opened {connections} connections for {count} requests, expected 1"
        );
        let mut latencies: Vec<_> = answers.iter().map(|answer| answer.latency).collect();
        latencies.sort_unstable();
        let at = |share: usize| {
            latencies
                .get((count * share / 100).min(count.saturating_sub(1)))
                .copied()
                .unwrap_or_default()
        };
        println!(
            "      GET {}  {count} more on one connection: median {:.2} ms, 99th percentile {:.2} ms",
            self.url(server),
            milliseconds(at(50)),
            milliseconds(at(99))
        );
        self.done.extend(answers);
        Ok(())
    }

    /// Each peer that curl saw is the address that it asked for.
    ///
    /// # Errors
    /// If one is not.
    pub fn client_saw_the_server(&self) -> Result<()> {
        for address in [self.world.server.v4, self.world.server.v6] {
            let asked = SocketAddr::new(address, self.port);
            let seen = self
                .done
                .iter()
                .filter(|answer| answer.peer == asked)
                .count();
            ensure!(
                seen > 0,
                "curl asked for {asked} and never saw it as its peer: {:?}",
                self.done
            );
            println!(
                "      curl asked for {asked}, and that is what its getpeername said, {seen} times of {seen}"
            );
        }
        let servers = [self.world.server.v4, self.world.server.v6];
        match self
            .done
            .iter()
            .find(|answer| !servers.contains(&answer.peer.ip()) || answer.peer.port() != self.port)
        {
            Some(other) => bail!("curl saw another peer than the one it asked for: {other:?}"),
            None => Ok(()),
        }
    }

    fn url(&self, server: IpAddr) -> String {
        format!("http://{}/hello.txt", SocketAddr::new(server, self.port))
    }

    /// One curl in the client's control group and namespace, that asks `count` times.
    fn curl(&self, server: IpAddr, count: usize) -> Result<Vec<Answer>> {
        if signals::interrupted().is_some() {
            bail!("sending requests");
        }
        let body = self.world.directory.join("body");
        let mut curl = client(self.world);
        curl.args(["--write-out", WRITE_OUT]);
        for _ in 0..count {
            curl.arg("--output").arg(&body).arg(self.url(server));
        }
        let told = process::output(&mut curl)
            .with_context(|| format!("asking for {}", self.url(server)))?;
        let answers: Vec<_> = told.lines().map(parse).collect::<Result<_>>()?;
        ensure!(
            answers.len() == count,
            "curl told of {} requests, expected {count}",
            answers.len()
        );
        for answer in &answers {
            ensure!(
                answer.status == 200,
                "{} answered {}, expected 200",
                self.url(server),
                answer.status
            );
            ensure!(
                answer.body_bytes == BODY.len(),
                "a body of {} bytes, expected {}",
                answer.body_bytes,
                BODY.len()
            );
        }
        let received = std::fs::read_to_string(&body).context("reading what curl received")?;
        ensure!(
            received == BODY,
            "curl received {received:?}, the server sent {BODY:?}"
        );
        Ok(answers)
    }
}

/// A request of which nothing but the status matters.
pub struct Asked<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub host: SocketAddr,
}

/// The status that curl is answered with.
///
/// # Errors
/// If there is no answer.
pub fn status(world: &World, asked: &Asked<'_>) -> Result<u16> {
    let Asked { method, path, host } = asked;
    let mut curl = client(world);
    curl.args(["--output", "/dev/null", "--write-out", "%{http_code}"]);
    curl.args(["--request", method, &format!("http://{host}{path}")]);
    let told = process::output(&mut curl).with_context(|| format!("{method} {path}"))?;
    told.parse().with_context(|| format!("curl told {told:?}"))
}

/// curl in the client's control group and namespace.
fn client(world: &World) -> Command {
    let mut curl = Command::new("sh");
    curl.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec nsenter \"$@\""]);
    curl.arg(&world.control_group);
    curl.arg(format!("--net={}", world.client.namespace().display()));
    // No ~/.curlrc.
    curl.args(["curl", "--disable", "--no-progress-meter"]);
    curl.args(["--noproxy", "*", "--max-time", "60"]);
    process::clean(&mut curl);
    curl.env(leftovers::RUN_VARIABLE, &world.run);
    curl
}

fn milliseconds(latency: Duration) -> f64 {
    latency.as_secs_f64() * 1_000.0
}

fn parse(line: &str) -> Result<Answer> {
    let words: Vec<_> = line.split(' ').collect();
    let [status, seconds, ip, port, bytes, connections] = words.as_slice() else {
        bail!("curl told {line:?}, expected six words");
    };
    let told = || format!("curl told {line:?}");
    Ok(Answer {
        status: status.parse().with_context(told)?,
        latency: Duration::try_from_secs_f64(seconds.parse().with_context(told)?)
            .with_context(told)?,
        peer: SocketAddr::new(
            ip.parse().with_context(told)?,
            port.parse().with_context(told)?,
        ),
        body_bytes: bytes.parse().with_context(told)?,
        new_connections: connections.parse().with_context(told)?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn curls_words_are_read() {
        let answer = parse("200 0.001234 2001:db8::2 8080 51 1").unwrap();
        assert_eq!(
            answer,
            Answer {
                status: 200,
                latency: Duration::from_micros(1234),
                peer: "[2001:db8::2]:8080".parse().unwrap(),
                body_bytes: 51,
                new_connections: 1
            }
        );
        assert!(parse("200 0.1  8080 51 1").is_err());
    }
}
