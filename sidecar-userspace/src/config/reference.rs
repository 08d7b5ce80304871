//! The reference page of the configuration file, `deploy/CONFIGURATION.md`, generated from the schema.

use std::fmt::Write as _;

use serde_json::Value;

use super::schema;

/// The page as it stands in the repository.
pub fn markdown() -> String {
    let schema = schema::value();
    let mut page = "# Configuration\n\n\
        Every key of `sidecar.yaml`, generated from the types that read it. [sidecar.yaml](sidecar.yaml) sets them \
        all, with comments; [examples/](examples/) has smaller files; [sidecar.schema.json](sidecar.schema.json) is \
        for editors. `sidecar check -c FILE` says what is wrong with a file.\n\n\
        The sidecar reads the file again on SIGHUP and when it changes. A file with a mistake changes nothing. \
        Connections keep the settings that they started with.\n"
        .to_owned();
    for (key, section) in properties(&schema) {
        // Writing to a string cannot fail.
        let _ = write!(page, "\n## {key}\n\n{}\n", description(section));
        if section.get("title").is_some() {
            let _ = write!(page, "\n{}\n", sentence(section));
        }
        let mut rows = String::new();
        add_rows(&mut rows, "", section);
        if !rows.is_empty() {
            let _ = write!(
                page,
                "\n| key | value | default | |\n|---|---|---|---|\n{rows}"
            );
        }
    }
    page
}

fn sentence(value: &Value) -> String {
    let default = default(value);
    let default = if default.is_empty() {
        default
    } else {
        format!(" Default: {default}.")
    };
    format!("Value: {}.{default}", title(value))
}

/// A row for each key under `section`, lists and sections included.
fn add_rows(rows: &mut String, prefix: &str, section: &Value) {
    let (prefix, section) = match section.get("items") {
        Some(items) => (format!("{prefix}[]"), items),
        None => (prefix.to_owned(), section),
    };
    for (key, value) in properties(section) {
        let key = match prefix.as_str() {
            "" => key.clone(),
            prefix => format!("{prefix}.{key}"),
        };
        let (title, default, description) = (title(value), default(value), description(value));
        let _ = writeln!(rows, "| `{key}` | {title} | {default} | {description} |");
        add_rows(rows, &key, value);
    }
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
}

fn description(schema: &Value) -> &str {
    schema
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// What is expected, by a scalar's title or the shape of what contains others.
fn title(schema: &Value) -> String {
    let title = |schema: &Value| Some(schema.get("title")?.as_str()?.to_owned());
    match (title(schema), schema.get("items")) {
        (Some(title), _) => title,
        (None, Some(items)) => match title(items) {
            Some(title) => format!("a list, each {title}"),
            None => "a list".to_owned(),
        },
        (None, None) => "a section".to_owned(),
    }
}

fn default(schema: &Value) -> String {
    match schema.get("default") {
        None => String::new(),
        Some(Value::String(text)) => format!("`{text}`"),
        Some(value) => format!("`{value}`"),
    }
}
