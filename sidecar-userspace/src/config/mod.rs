//! The configuration file: read, checked as a whole, compiled to the model, watched.
//!
//! # Layout
//!
//! - `file`, the keys, one definition each; `shape`, how they are read; `scalar`, `value` and `pattern`, how a single value is written
//! - [`source`], where a configuration comes from; `over`, what a pod puts over its file
//! - `validate`, what must hold between values, and the way into the model
//! - [`schema`] and [`mod@reference`], the JSON Schema and the reference page, generated from `file`
//! - [`watch`], the snapshot in force, and its replacement while the sidecar runs

mod error;
mod file;
mod over;
mod pattern;
pub mod reference;
mod scalar;
pub mod schema;
mod shape;
pub mod source;
mod validate;
mod value;
pub mod watch;

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    time::Duration,
};

pub use error::{ConfigError, ConfigErrors};
pub use source::Source;
pub use watch::{FileWatcher, ReloadStatus, SnapshotHandle};

use crate::model::Snapshot;

/// Bytes of a configuration file at most; a Kubernetes ConfigMap holds 1 MiB.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Reads and compiles the file at `path`.
///
/// # Errors
///
/// The file cannot be read, or every mistake in it.
pub fn load(path: &Path) -> Result<Snapshot, ConfigErrors> {
    Source::from(Some(path.to_owned())).load()
}

/// Compiles `text`, YAML, calling it `name` in errors. An empty text gives the built-in settings.
///
/// # Errors
///
/// A mistake in the YAML or in its shape, by itself; else every mistake in what it says.
pub fn parse(name: &str, text: &str) -> Result<Snapshot, ConfigErrors> {
    shape::parse(text)
        .map_err(|error| vec![error])
        .and_then(validate::compile)
        .map_err(|errors| ConfigErrors::new(name, errors))
}

/// A time as it is written in the file, such as `1h30m`.
pub fn duration(text: &str) -> Option<Duration> {
    scalar::duration_ms(text).map(Duration::from_millis)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let mut file = File::open(path)?.take(FILE_BYTES_MAX + 1);
    file.read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!(
            "the file has more than {FILE_BYTES_MAX} bytes"
        )));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
