//! `ready`: whether the sidecar beside is ready, for hooks and probes in images that have no shell.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{runtime, time::sleep};

use crate::{
    cli::Ready as Arguments,
    fetch::{self, FetchError, Place},
    tls::origin::Origins,
};

/// Bytes of an answer.
const ANSWER_MAX: usize = 64 * 1024;
const PAUSE: Duration = Duration::from_millis(100);

pub fn run(args: Arguments) -> Result<ExitCode> {
    let place = Place::parse(&format!("http://{}/healthz/ready", args.address));
    let place = place.context("the address cannot be asked")?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let deadline = args.wait.map(|wait| Instant::now() + wait.0);
    runtime.block_on(async {
        loop {
            let answer = fetch::text(&place, &Origins::default(), ANSWER_MAX).await;
            let again = deadline.is_some_and(|deadline| Instant::now() + PAUSE < deadline);
            match answer {
                Ok(_) => {
                    println!("ready");
                    return Ok(ExitCode::SUCCESS);
                }
                Err(_) if again => sleep(PAUSE).await,
                Err(FetchError::Status(_)) => {
                    eprintln!("sidecar: it is not ready yet");
                    return Ok(ExitCode::FAILURE);
                }
                Err(error) => return Err(error).context("it does not say"),
            }
        }
    })
}
