//! The JSON Schema of the configuration file, generated from the types of `file` into `deploy/sidecar.schema.json`.

use std::{collections::BTreeMap, time::Duration};

use schemars::{Schema, generate::SchemaSettings};
use serde_json::{Value, json};

use super::{
    file::File,
    scalar::{duration_text, size_text},
    value::Choice,
};
use crate::model::Snapshot;

/// The schema as it stands in the repository, with a line's end.
pub fn json() -> String {
    format!("{:#}\n", value())
}

/// JSON Schema 2020-12 without references, with the built-in settings as defaults.
pub(super) fn value() -> Value {
    let inline = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema: Schema = inline.into_generator().into_root_schema_for::<File>();
    schema.insert("title".to_owned(), "sidecar.yaml".into());
    let mut value = schema.to_value();
    add_defaults(&mut value, &defaults());
    tidy(value)
}

/// Puts each leaf of `defaults`, shaped as the file, into the schema as that key's default.
fn add_defaults(schema: &mut Value, defaults: &Value) {
    let Some(section) = defaults.as_object() else {
        if let Some(schema) = schema.as_object_mut() {
            schema.insert("default".to_owned(), defaults.clone());
        }
        return;
    };
    for (key, default) in section {
        if let Some(property) = schema.pointer_mut(&format!("/properties/{key}")) {
            add_defaults(property, default);
        }
    }
}

/// Keys in alphabetical order whatever serde_json was built with, and descriptions without the line breaks of the
/// source.
fn tidy(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<String, Value> = map.into_iter().collect();
            let tidied = sorted.into_iter().map(|(key, value)| match value {
                Value::String(text) if key == "description" => {
                    (key, text.replace('\n', " ").into())
                }
                value => (key, tidy(value)),
            });
            Value::Object(tidied.collect())
        }
        Value::Array(list) => list.into_iter().map(tidy).collect(),
        leaf => leaf,
    }
}

/// The built-in settings, shaped as the file.
fn defaults() -> Value {
    let builtin = Snapshot::builtin();
    let Snapshot {
        workload,
        outbound,
        inbound,
        redirect,
        fail_rule,
        listeners,
        limits,
        timeouts,
        lifecycle,
        access_log,
        authorization,
        ..
    } = &builtin;
    let time = |duration: &Duration| {
        duration_text(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    };
    let size = |bytes: usize| size_text(bytes as u64);
    json!({
        "workload": { "name": workload.name, "namespace": workload.namespace },
        "outbound": { "unknown": outbound.unknown.word() },
        "inbound": { "capture": inbound.capture.word() },
        "redirect": {
            "enabled": redirect.enabled,
            "level": redirect.level,
            "adaptive": redirect.adaptive,
            "credit": size_text(u64::from(redirect.credit_bytes)),
        },
        "authorization": { "pathNormalization": authorization.path_normalization.word() },
        "failRule": fail_rule.word(),
        "listeners": {
            "outbound": listeners.outbound,
            "steered": listeners.steered,
            "inbound": listeners.inbound,
            "admin": listeners.admin,
            "metrics": listeners.metrics,
            "health": listeners.health,
        },
        "limits": {
            "headerBytes": size(limits.header_bytes),
            "headers": limits.headers,
            "bufferBytes": size(limits.buffer_bytes),
            "idleConnectionsPerEndpoint": limits.idle_connections_per_endpoint,
        },
        "timeouts": {
            "connect": time(&timeouts.connect),
            "idle": time(&timeouts.idle),
            "requestHead": time(&timeouts.request_head),
            "httpIdle": time(&timeouts.http_idle),
            "tlsHandshake": time(&timeouts.tls_handshake),
            "keepalive": time(&timeouts.keepalive),
            "user": time(&timeouts.user),
            "drain": time(&timeouts.drain),
        },
        "lifecycle": {
            "exitWhenAlone": lifecycle.exit_when_alone,
            "aloneFor": time(&lifecycle.alone_for),
            "waitForApplication": time(&lifecycle.wait_for_application),
        },
        "accessLog": { "format": access_log.format.word(), "path": access_log.path },
    })
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::Path};

    use super::*;
    use crate::config::{parse, reference};

    /// Compares what is generated with what is committed, or commits it.
    #[track_caller]
    fn check(file: &str, generated: &str) {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy")).join(file);
        if env::var_os("UPDATE_SCHEMA").is_some() {
            fs::write(&path, generated).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == generated,
            "deploy/{file} is not what the configuration's types say. Regenerate it:\n    \
             UPDATE_SCHEMA=1 cargo test -p sidecar-userspace config::schema"
        );
    }

    #[test]
    fn the_committed_schema_is_current() {
        check("sidecar.schema.json", &json());
    }

    #[test]
    fn the_committed_reference_is_current() {
        check("CONFIGURATION.md", &reference::markdown());
    }

    #[test]
    fn the_defaults_are_what_holds_without_a_file() {
        let snapshot = parse("defaults", &defaults().to_string()).unwrap();
        assert_eq!(snapshot, Snapshot::builtin());
    }

    fn leaves(value: &Value) -> usize {
        match value.as_object() {
            Some(section) => section.values().map(leaves).sum(),
            None => 1,
        }
    }

    #[test]
    fn every_default_found_its_key() {
        let text = json();
        // One key of the file is itself called so.
        let keys = text.matches("\"default\": {").count();
        let found = text.matches("\"default\":").count() - keys;
        assert_eq!(found, leaves(&defaults()));
    }

    #[test]
    fn no_section_takes_unknown_keys() {
        let text = json();
        let closed = text.matches("\"additionalProperties\": false").count();
        assert_eq!(closed, text.matches("\"properties\":").count());
    }
}
