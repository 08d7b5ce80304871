//! Pods in files: each document of a file is looked through for the pods that it describes.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    Defaults, Mistake,
    asked::Namespace,
    patch::apply,
    pod::{Outcome, Pod},
    yaml::Document,
};

/// A file's documents with sidecars put in.
#[derive(Debug, Clone, PartialEq)]
pub struct Injected {
    pub documents: Vec<Value>,
    /// Pods that got one.
    pub count: usize,
    /// For whoever runs this, each with its line.
    pub warnings: Vec<Complaint>,
}

/// What is to be said of an object in a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}: {object}: {why}")]
pub struct Complaint {
    /// Where the document begins.
    pub line: u64,
    /// Such as `Deployment orders`.
    pub object: String,
    pub why: String,
}

/// Puts sidecars into all pods of `documents`. Whoever calls this asks for them; namespaces among the documents may say no,
/// pods as well. `namespace`: of objects that name none.
///
/// # Errors
///
/// All that cannot be; nothing is to be written then.
pub fn inject(
    documents: Vec<Document>,
    namespace: Option<&str>,
    defaults: &Defaults,
) -> Result<Injected, Vec<Complaint>> {
    let mut session = Session {
        defaults,
        namespace,
        says: BTreeMap::new(),
        count: 0,
        warnings: Vec::new(),
        errors: Vec::new(),
    };
    for document in &documents {
        session.learn(&document.value, document.line);
    }
    let mut values = Vec::new();
    for Document { line, mut value } in documents {
        session.object(&mut value, line);
        values.push(value);
    }
    match session.errors.is_empty() {
        true => Ok(Injected {
            documents: values,
            count: session.count,
            warnings: session.warnings,
        }),
        false => Err(session.errors),
    }
}

/// One document for all of them, as kubectl's.
pub fn as_list(mut documents: Vec<Value>) -> Value {
    match documents.len() {
        1 => documents.remove(0),
        _ => json!({ "apiVersion": "v1", "kind": "List", "items": documents }),
    }
}

struct Session<'a> {
    defaults: &'a Defaults,
    namespace: Option<&'a str>,
    /// What namespaces among the documents say.
    says: BTreeMap<String, Namespace>,
    count: usize,
    warnings: Vec<Complaint>,
    errors: Vec<Complaint>,
}

impl Session<'_> {
    /// A namespace may stand behind its pods.
    fn learn(&mut self, value: &Value, line: u64) {
        for item in items(value) {
            self.learn(item, line);
        }
        if value["kind"] != "Namespace" || value["apiVersion"] != "v1" {
            return;
        }
        let none = Map::new();
        let labels = value.pointer("/metadata/labels").and_then(Value::as_object);
        match Namespace::of(labels.unwrap_or(&none), self.defaults.istio_names) {
            Ok(says) => {
                let name = value.pointer("/metadata/name").and_then(Value::as_str);
                self.says.insert(name.unwrap_or_default().to_owned(), says);
            }
            Err(Mistake(why)) => self.errors.push(complaint(value, line, why)),
        }
    }

    fn object(&mut self, value: &mut Value, line: u64) {
        if is_list(value) {
            let items = value.get_mut("items").and_then(Value::as_array_mut);
            for item in items.into_iter().flatten() {
                self.object(item, line);
            }
            return;
        }
        let Some(path) = pod_of(value) else {
            return;
        };
        let owner = value.pointer("/metadata/name").and_then(Value::as_str);
        let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str);
        let namespace = namespace.or(self.namespace);
        let said = namespace.and_then(|name| self.says.get(name)).copied();
        let says = match said {
            Some(Namespace::Disabled) => Namespace::Disabled,
            _ => Namespace::Enabled,
        };
        let Some(template) = value.pointer(path) else {
            let why = format!("it has no {path}");
            return self.errors.push(complaint(value, line, why));
        };
        let pod = Pod {
            value: template,
            says,
            namespace,
            owner,
        };
        match pod.decide(self.defaults) {
            Outcome::Inject { patch, warnings } => {
                for why in warnings {
                    self.warnings.push(complaint(value, line, why));
                }
                let mut template = template.clone();
                match apply(&patch, &mut template) {
                    Ok(()) => {
                        self.count += 1;
                        if let Some(place) = value.pointer_mut(path) {
                            *place = template;
                        }
                    }
                    Err(misfit) => {
                        self.errors.push(complaint(value, line, misfit.to_string()));
                    }
                }
            }
            Outcome::Leave { why, warn } => {
                if warn {
                    let why = format!("left without a sidecar: {why}");
                    self.warnings.push(complaint(value, line, why));
                }
            }
            Outcome::Refuse(why) => self.errors.push(complaint(value, line, why)),
        }
    }
}

fn is_list(value: &Value) -> bool {
    let kind = value["kind"].as_str().unwrap_or_default();
    value["items"].is_array() && kind.ends_with("List")
}

fn items(value: &Value) -> &[Value] {
    match value["items"].as_array() {
        Some(items) if is_list(value) => items,
        _ => &[],
    }
}

/// Where an object has its pod, as a JSON pointer; `None`: it is of a kind that has none, or of somebody else's group.
fn pod_of(value: &Value) -> Option<&'static str> {
    let group = value["apiVersion"].as_str()?;
    let group = group.split_once('/').map_or("", |(group, _)| group);
    match (group, value["kind"].as_str()?) {
        ("", "Pod") => Some(""),
        ("", "PodTemplate") => Some("/template"),
        ("", "ReplicationController") => Some("/spec/template"),
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet") => {
            Some("/spec/template")
        }
        ("batch", "Job") => Some("/spec/template"),
        ("batch", "CronJob") => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

fn complaint(value: &Value, line: u64, why: String) -> Complaint {
    let kind = value["kind"].as_str().unwrap_or("object");
    let metadata = &value["metadata"];
    let name = metadata["name"]
        .as_str()
        .or(metadata["generateName"].as_str());
    Complaint {
        line,
        object: format!("{kind} {}", name.unwrap_or("without a name")),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inject::yaml;

    fn injected(text: &str) -> Result<Injected, Vec<Complaint>> {
        inject(yaml::read(text).unwrap(), None, &Defaults::default())
    }

    const POD: &str =
        "{ metadata: { labels: { app: a } }, spec: { containers: [{ name: a, image: a }] } }";

    #[test]
    fn every_kind_with_pods() {
        let templates = [
            (
                "v1",
                "Pod",
                "spec: { containers: [{ name: a }] }".to_owned(),
            ),
            ("v1", "PodTemplate", format!("template: {POD}")),
            (
                "v1",
                "ReplicationController",
                format!("spec: {{ template: {POD} }}"),
            ),
            (
                "apps/v1",
                "Deployment",
                format!("spec: {{ template: {POD} }}"),
            ),
            (
                "apps/v1",
                "StatefulSet",
                format!("spec: {{ template: {POD} }}"),
            ),
            (
                "apps/v1",
                "DaemonSet",
                format!("spec: {{ template: {POD} }}"),
            ),
            (
                "apps/v1",
                "ReplicaSet",
                format!("spec: {{ template: {POD} }}"),
            ),
            ("batch/v1", "Job", format!("spec: {{ template: {POD} }}")),
            (
                "batch/v1",
                "CronJob",
                format!("spec: {{ jobTemplate: {{ spec: {{ template: {POD} }} }} }}"),
            ),
        ];
        for (version, kind, rest) in &templates {
            let text = format!(
                "apiVersion: {version}\nkind: {kind}\nmetadata: {{ name: orders }}\n{rest}\n"
            );
            let injected = injected(&text).unwrap();
            assert_eq!(injected.count, 1, "{text}");
            let shown = injected.documents[0].to_string();
            assert!(
                shown.contains("name: orders") && shown.contains("SIDECAR_NAMESPACE"),
                "{shown}"
            );
        }
        let others = "apiVersion: v1\nkind: Service\nspec: { template: {} }\n---\napiVersion: example.org/v1\nkind: Job\nspec: {}\n";
        let left = injected(others).unwrap();
        assert_eq!((left.count, left.documents.len()), (0, 2));
    }

    #[test]
    fn lists_and_namespaces() {
        let pod = "apiVersion: v1, kind: Pod, spec: { containers: [{ name: a }] }";
        let text = format!(
            "apiVersion: v1\nkind: List\nitems:\n- {{ {pod}, metadata: {{ name: a, namespace: quiet }} }}\n\
             - {{ {pod}, metadata: {{ name: b }} }}\n---\n\
             apiVersion: v1\nkind: Namespace\nmetadata: {{ name: quiet, labels: {{ istio-injection: disabled }} }}\n"
        );
        let injected = injected(&text).unwrap();
        assert_eq!(injected.count, 1);
        let items = injected.documents[0]["items"].as_array().unwrap();
        assert!(items[0]["spec"].get("initContainers").is_none());
        assert!(items[1]["spec"].get("initContainers").is_some());
    }

    #[test]
    fn all_complaints_have_their_lines() {
        let text = "# a\napiVersion: v1\nkind: Pod\nmetadata: { name: a }\nspec: { hostNetwork: yes, containers: [{ name: a }] }\n---\n\
                    apiVersion: apps/v1\nkind: Deployment\nmetadata: { name: b }\nspec: {}\n---\n\
                    apiVersion: batch/v1\nkind: Job\nmetadata: { name: c }\nspec: { template: { spec: { containers: [] } } }\n";
        let errors = injected(text).unwrap_err();
        let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "7: Deployment b: it has no /spec/template",
                "12: Job c: it has no containers"
            ]
        );
        let warned = injected(text.split("---").next().unwrap()).unwrap();
        assert_eq!((warned.count, warned.warnings[0].line), (0, 2));
        assert!(warned.warnings[0].why.contains("hostNetwork"));
    }
}
