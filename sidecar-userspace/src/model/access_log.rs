//! Where the outcome of each request and connection is written, and how.

use std::path::PathBuf;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    pub format: AccessLogFormat,
    /// A file that is appended to, or a device such as `/dev/stdout`.
    pub path: PathBuf,
}

/// The shape of one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// One JSON object.
    Json,
    /// One line for people.
    Text,
    /// No access log at all.
    None,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            format: AccessLogFormat::Json,
            path: PathBuf::from("/dev/stdout"),
        }
    }
}
