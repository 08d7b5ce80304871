//! The report as one HTML file: no script, no other file, plots as inline SVG.

use super::{
    claims,
    figures::{Figure, Figures},
    row::{Measures, Row},
    run::Run,
    targets,
    terminal::{number, signed},
};

mod plot;

const STYLE: &str = include_str!("style.css");

pub fn page(run: &Run) -> String {
    let figures = Figures::of(run);
    let title = "What a sidecar hop costs";
    let body = [
        format!("<h1>{title}</h1><p>{}</p>", escaped(&claims::conditions(run))),
        "<h2>What it shows</h2>".to_owned(),
        list(&claims::of(run)),
        "<h2>Targets</h2>".to_owned(),
        target_table(run),
        "<h2>Latency</h2><p>The slowest requests are on the right: each step of the scale is a tenth of those before.</p>".to_owned(),
        plots(&figures, true),
        "<h2>Throughput</h2><p>Medians of the rounds; the line shows the lowest and the highest.</p>".to_owned(),
        plots(&figures, false),
        "<h2>Everything</h2><p>Times in microseconds; CPU in seconds per 10,000 requests (of a stream: writes), of both proxies and of the \
         whole path with client and server; context switches and system calls of both proxies per request; the latter only where perf can count them, by a sample of their own.</p>"
            .to_owned(),
        everything(&figures),
    ];
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head>\n\
         <body>{}</body></html>\n",
        body.join("\n")
    )
}

/// Text as HTML shows it.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn list(sentences: &[String]) -> String {
    let items: String = sentences
        .iter()
        .map(|sentence| format!("<li>{}</li>", escaped(sentence)))
        .collect();
    format!("<ul>{items}</ul>")
}

fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head: String = head
        .iter()
        .map(|cell| format!("<th>{}</th>", escaped(cell)))
        .collect();
    let rows: String = rows
        .map(|row| {
            let cells: String = row
                .iter()
                .map(|cell| format!("<td>{}</td>", escaped(cell)))
                .collect();
            format!("<tr>{cells}</tr>")
        })
        .collect();
    format!(
        "<div class=\"wide\"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
}

fn target_table(run: &Run) -> String {
    let rows = targets::table(run).into_iter().map(|target| {
        vec![
            target.what.to_owned(),
            target.row.to_owned(),
            target.bound_text(),
            target.measured_text(),
            target.verdict().to_owned(),
        ]
    });
    table(&["what", "row", "target", "measured", ""], rows)
}

fn plots(figures: &Figures<'_>, latency: bool) -> String {
    let mut text = String::from("<div class=\"plots\">");
    for name in figures.rows() {
        let Ok(row) = name.parse::<Row>() else {
            continue;
        };
        text += &match (row.measures(), latency) {
            (Measures::Latency, true) => plot::distribution(figures, name),
            (Measures::Requests, false) => plot::bars(figures, name, Figure::Rate, "requests/s"),
            (Measures::Bytes, false) => {
                plot::bars(figures, name, Figure::MegabytesPerSecond, "MB/s")
            }
            _ => continue,
        };
    }
    text + "</div>"
}

fn everything(figures: &Figures<'_>) -> String {
    let head = [
        "row",
        "mode",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "p50 added",
        "p99 added",
        "per second",
        "MB/s",
        "CPU proxies",
        "CPU path",
        "context switches",
        "system calls",
        "redirected, %",
        "connect p50",
        "errors",
        "noisy",
    ];
    let mut rows = Vec::new();
    for row in figures.rows() {
        for mode in figures.modes() {
            if figures.samples(row, mode).next().is_none() {
                continue;
            }
            let show = |figure, digits| number(figures.middle(row, mode, figure), digits);
            let added = |figure| signed(figures.added(row, mode, figure));
            rows.push(vec![
                row.to_owned(),
                mode.to_owned(),
                show(Figure::P50, 0),
                show(Figure::P90, 0),
                show(Figure::P99, 0),
                show(Figure::P999, 0),
                added(Figure::P50),
                added(Figure::P99),
                show(Figure::Rate, 0),
                show(Figure::MegabytesPerSecond, 1),
                show(Figure::CpuProxies, 3),
                show(Figure::CpuPath, 3),
                show(Figure::ContextSwitches, 2),
                show(Figure::SystemCalls, 1),
                show(Figure::Redirected, 0),
                show(Figure::Connect, 0),
                figures.errors(row, mode).to_string(),
                figures.noisy(row, mode).to_string(),
            ]);
        }
    }
    table(&head, rows.into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example;

    #[test]
    fn the_page_stands_alone_and_names_machine_and_modes() {
        let page = page(&example::run());
        for part in [
            "A &lt;fast&gt; CPU",
            "6.18.0",
            "<svg",
            "iptables",
            "<polyline",
            "<rect",
        ] {
            assert!(page.contains(part), "{part}");
        }
        // Nothing is fetched.
        for foreign in ["<script", "<link", "src=", "url(", "@import"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }
}
