//! An answer that comes long after the question was half-closed.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use sidecar_tests::output::{say, tell};

use crate::connect;

#[derive(Args)]
pub struct Serve {
    #[arg(long)]
    listen: SocketAddr,
    /// Between the end of the question and the answer.
    #[arg(long, default_value_t = 90)]
    seconds: u64,
}

#[derive(Args)]
pub struct Ask {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long, default_value = "question")]
    question: String,
}

#[derive(Serialize)]
struct Answered {
    answer: String,
    error: Option<String>,
    elapsed_seconds: f64,
}

impl Serve {
    /// Serves one connection.
    pub fn run(self) -> Result<()> {
        let listener = connect::listen(self.listen, false)?;
        say(format_args!("listening {}", listener.local_addr()?))?;
        let (mut stream, _) = listener.accept()?;
        let mut question = String::new();
        stream.read_to_string(&mut question)?;
        say("half-closed")?;
        thread::sleep(Duration::from_secs(self.seconds));
        Ok(stream.write_all(format!("answer to {question}").as_bytes())?)
    }
}

impl Ask {
    pub fn run(self) -> Result<()> {
        let started = Instant::now();
        let mut stream = connect::dial(self.to, &connect::Dial::default())?;
        stream.write_all(self.question.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        let error = stream
            .read_to_string(&mut answer)
            .err()
            .map(|error| error.to_string());
        tell(&Answered {
            answer,
            error,
            elapsed_seconds: started.elapsed().as_secs_f64(),
        })
    }
}
