//! What the demo's sidecars counted, read from their metrics.

use super::sidecars::Sidecar;
use anyhow::{Result, ensure};
use std::collections::BTreeMap;

/// Samples by name and labels, of each side.
pub struct Figures {
    client: BTreeMap<String, f64>,
    server: BTreeMap<String, f64>,
}

impl Figures {
    /// Reads both.
    ///
    /// # Errors
    /// If one does not answer.
    pub fn read(client: &Sidecar, server: &Sidecar) -> Result<Self> {
        Ok(Self {
            client: samples(&client.metrics()?),
            server: samples(&server.metrics()?),
        })
    }

    /// A table: what every demo should show, and what else was not zero.
    pub fn print(&self) {
        println!("      {:<52} {:>9} {:>9}", "", "client's", "server's");
        for name in self.names() {
            println!(
                "      {:<52} {:>9} {:>9}",
                in_words(name),
                shown(&self.client, name),
                shown(&self.server, name)
            );
        }
    }

    /// What is worth a line: the kernel half's counters in the order of [`WORDS`], then the proxies'.
    fn names(&self) -> Vec<&str> {
        let worth = |(name, value): &(&String, &f64)| {
            let always = ALWAYS.iter().any(|event| name.contains(event));
            let kernels = name.starts_with("sidecar_kernel_") && (**value != 0.0 || always);
            let proxies = ["sidecar_requests_total", "sidecar_connections_total"]
                .iter()
                .any(|start| name.starts_with(start));
            kernels || (proxies && **value != 0.0)
        };
        let all = self.client.iter().chain(&self.server);
        let mut names: Vec<_> = all.filter(worth).map(|(name, _)| name.as_str()).collect();
        let place = |name: &&str| {
            let known = WORDS
                .iter()
                .position(|(value, _)| name.contains(&format!("\"{value}\"}}")));
            (
                !name.starts_with("sidecar_kernel_"),
                known.unwrap_or(WORDS.len()),
                (*name).to_owned(),
            )
        };
        names.sort_by_key(place);
        names.dedup();
        names
    }

    /// That the requests went through the sidecars at all.
    ///
    /// # Errors
    /// If the kernel half steered nothing on the client's side or handed nothing over on the server's.
    pub fn prove_steering(&self) -> Result<()> {
        for (side, figures, decision) in [
            ("client", &self.client, "steered"),
            ("server", &self.server, "inbound"),
        ] {
            let counted: f64 = figures
                .iter()
                .filter(|(name, _)| {
                    name.starts_with("sidecar_kernel_") && name.contains(&format!("\"{decision}\""))
                })
                .map(|(_, value)| value)
                .sum();
            ensure!(
                counted > 0.0,
                "the {side}'s kernel half counted no connection as {decision}: the requests did not go through the sidecar"
            );
        }
        Ok(())
    }
}

/// Events that are shown also where there were none: they are the point, or the reason why it was missed.
const ALWAYS: [&str; 5] = [
    "\"steered\"",
    "\"inbound\"",
    "\"redirected\"",
    "\"fallback_order\"",
    "\"fallback_credit\"",
];

/// What the kernel half's counters mean, by the value of their only label.
const WORDS: [(&str, &str); 34] = [
    (
        "connect_refused",
        "outbound connections refused: too many under way",
    ),
    (
        "handover_failed",
        "connections whose other end could not be told who calls",
    ),
    (
        "inbound_closed",
        "inbound connections refused: nobody listens there",
    ),
    (
        "listener_lost",
        "places of listeners that could not be remembered",
    ),
    ("steered", "connections steered to the proxy"),
    ("excluded", "connections left alone: excluded"),
    ("loopback", "connections left alone: loopback"),
    ("link_local", "connections left alone: IPv6 link-local"),
    ("inbound", "connections from elsewhere handed to the proxy"),
    (
        "inbound_refused",
        "connections from elsewhere refused: no proxy",
    ),
    (
        "inbound_bypassed",
        "connections from elsewhere let through: no proxy",
    ),
    ("origin", "original addresses handed to accepted sockets"),
    ("paired", "sockets whose other end is on this node, too"),
    ("unpaired", "sockets not paired: no room"),
    (
        "unprofitable",
        "sockets not paired: it does not pay on this port",
    ),
    (
        "kubelet_probe",
        "connections of the kubelet passed to the application",
    ),
    ("redirected", "messages redirected past TCP"),
    ("joined", "  of these, past both proxies as well"),
    (
        "fallback_order",
        "messages left to TCP: earlier ones not proven read",
    ),
    ("fallback_credit", "messages left to TCP: credit used up"),
    (
        "fallback_application",
        "messages left to TCP: towards an application",
    ),
    (
        "fallback_blocking",
        "messages left to TCP: the application blocks in its reads",
    ),
    (
        "fallback_ulp",
        "messages left to TCP: another protocol on top of it",
    ),
    (
        "held_back",
        "waits of the proxy until the application had read",
    ),
    (
        "fallback_bulk",
        "messages left to TCP: large ones gain nothing",
    ),
    (
        "fallback_no_peer",
        "messages left to TCP: the other end is not paired",
    ),
    (
        "fallback_splice",
        "messages left to TCP: their reader splices",
    ),
    (
        "fallback_closing",
        "messages left to TCP: the socket is closing",
    ),
    ("fallback_off", "messages left to TCP: redirect is off"),
    ("fallback_miss", "messages left to TCP: the kernel refused"),
    ("splice", "reads by splice"),
    ("denied", "outbound connections refused: destination denied"),
    ("redirect", "bytes redirected past TCP"),
    ("tcp", "bytes of paired sockets left to TCP"),
];

/// A sample's name as a person would say it; one that is not known stays as it is.
fn in_words(name: &str) -> String {
    let (metric, labels) = name.split_once('{').unwrap_or((name, ""));
    let values: Vec<_> = labels.split('"').skip(1).step_by(2).collect();
    if metric.starts_with("sidecar_kernel_") {
        let words = WORDS.iter().find(|(value, _)| values == [*value]);
        return words.map_or_else(|| name.to_owned(), |(_, words)| (*words).to_owned());
    }
    let metric = metric
        .trim_start_matches("sidecar_")
        .trim_end_matches("_total")
        .replace('_', " ");
    format!("{metric}: {}", values.join(", "))
}

fn shown(figures: &BTreeMap<String, f64>, name: &str) -> String {
    match figures.get(name) {
        Some(value) => format!("{value}"),
        None => "-".to_owned(),
    }
}

/// The samples of Prometheus' text format.
fn samples(text: &str) -> BTreeMap<String, f64> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_and_comments_are_not() {
        let text = "# HELP a_total A.\n# TYPE a_total counter\na_total{decision=\"steered\",why=\"x y\"} 3\nb 0.5\n";
        let samples = samples(text);
        assert_eq!(
            samples.get("a_total{decision=\"steered\",why=\"x y\"}"),
            Some(&3.0)
        );
        assert_eq!(samples.get("b"), Some(&0.5));
        assert_eq!(samples.len(), 2);
    }

    #[test]
    fn every_counter_of_the_kernel_half_has_words() {
        for counter in sidecar_common::record::Counter::ALL {
            let known = WORDS.iter().any(|(value, _)| *value == counter.name());
            assert!(known, "{} needs words in WORDS", counter.name());
        }
    }

    #[test]
    fn known_counters_are_told_in_words_and_new_ones_as_they_are() {
        assert_eq!(
            in_words("sidecar_kernel_events_total{event=\"steered\"}"),
            "connections steered to the proxy"
        );
        assert_eq!(
            in_words("sidecar_kernel_events_total{event=\"new\"}"),
            "sidecar_kernel_events_total{event=\"new\"}"
        );
        assert_eq!(
            in_words("sidecar_requests_total{code=\"2xx\",direction=\"inbound\"}"),
            "requests: 2xx, inbound"
        );
    }
}
