//! `sidecar inject`: files and webhook, as a cluster uses them.

mod certificates;
mod golden;
mod offline;
mod selectors;
mod settings;
mod webhook;
