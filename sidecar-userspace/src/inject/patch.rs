//! What is changed in a pod, as a JSON patch (RFC 6902): the injector only adds, and moves its own container.

use serde::Serialize;
use serde_json::Value;

/// One step of a patch.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Operation {
    /// Into a list at an index, or at its end (`-`); into an object under a key, in the place of what is there.
    Add { path: String, value: Value },
    /// Within a list.
    Move { from: String, path: String },
}

/// A patch does not fit what it is applied to: a bug of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the patch does not fit at {0}")]
pub struct Misfit(String);

impl Operation {
    /// At the place that `keys` lead to.
    pub fn add(keys: &[&str], value: impl Into<Value>) -> Self {
        Self::Add {
            path: pointer(keys),
            value: value.into(),
        }
    }

    /// The element `from` of the list that `keys` lead to goes to `to`.
    pub fn shift(keys: &[&str], from: usize, to: usize) -> Self {
        let list = pointer(keys);
        Self::Move {
            from: format!("{list}/{from}"),
            path: format!("{list}/{to}"),
        }
    }
}

/// # Errors
///
/// An operation that names what is not there; `target` is then half changed.
pub fn apply(operations: &[Operation], target: &mut Value) -> Result<(), Misfit> {
    for operation in operations {
        match operation {
            Operation::Add { path, value } => add(target, path, value.clone())?,
            Operation::Move { from, path } => {
                let taken = take(target, from)?;
                add(target, path, taken)?;
            }
        }
    }
    Ok(())
}

fn add(target: &mut Value, path: &str, value: Value) -> Result<(), Misfit> {
    let misfit = || Misfit(path.to_owned());
    let (parent, key) = path.rsplit_once('/').ok_or_else(misfit)?;
    match target.pointer_mut(parent).ok_or_else(misfit)? {
        Value::Object(object) => {
            object.insert(key.replace("~1", "/").replace("~0", "~"), value);
        }
        Value::Array(list) if key == "-" => list.push(value),
        Value::Array(list) => {
            let index: usize = key.parse().map_err(|_| misfit())?;
            if index > list.len() {
                return Err(misfit());
            }
            list.insert(index, value);
        }
        _ => return Err(misfit()),
    }
    Ok(())
}

fn take(target: &mut Value, path: &str) -> Result<Value, Misfit> {
    let misfit = || Misfit(path.to_owned());
    let (parent, key) = path.rsplit_once('/').ok_or_else(misfit)?;
    let list = target.pointer_mut(parent).and_then(Value::as_array_mut);
    let index: usize = key.parse().map_err(|_| misfit())?;
    match list {
        Some(list) if index < list.len() => Ok(list.remove(index)),
        _ => Err(misfit()),
    }
}

/// RFC 6901.
fn pointer(keys: &[&str]) -> String {
    let escaped = |key: &&str| format!("/{}", key.replace('~', "~0").replace('/', "~1"));
    keys.iter().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn steps_are_taken_in_order() {
        let mut target = json!({ "spec": { "list": [1, 2] } });
        let steps = [
            Operation::add(&["meta"], json!({})),
            Operation::add(&["meta", "a/b~c"], "x"),
            Operation::add(&["spec", "list", "0"], 0),
            Operation::add(&["spec", "list", "-"], 3),
            Operation::shift(&["spec", "list"], 3, 0),
        ];
        apply(&steps, &mut target).unwrap();
        let expected = json!({ "meta": { "a/b~c": "x" }, "spec": { "list": [3, 0, 1, 2] } });
        assert_eq!(target, expected);
        let text = serde_json::to_value(&steps).unwrap();
        assert_eq!(
            text[1],
            json!({ "op": "add", "path": "/meta/a~1b~0c", "value": "x" })
        );
        assert_eq!(
            text[4],
            json!({ "op": "move", "from": "/spec/list/3", "path": "/spec/list/0" })
        );
    }

    #[test]
    fn what_is_not_there_is_a_misfit() {
        let mut target = json!({ "list": [] });
        for wrong in [
            Operation::add(&["none", "a"], 1),
            Operation::add(&["list", "1"], 1),
            Operation::add(&["list", "x"], 1),
            Operation::shift(&["list"], 0, 0),
        ] {
            assert!(apply(&[wrong], &mut target).is_err());
        }
    }
}
