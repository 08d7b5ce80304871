//! What a pod is called in logs and metrics.

use serde_json::Value;

use super::{Pod, list, object};
use crate::inject::{annotation::Wishes, is_name};

impl Pod<'_> {
    /// The name that stands in logs and metrics: of what the pod belongs to, so that it stays when the pod goes.
    pub(super) fn workload(&self, wishes: &Wishes) -> String {
        if let Some(name) = &wishes.workload {
            return name.clone();
        }
        let metadata = self.metadata();
        let text = |key: &str| metadata.get(key).and_then(Value::as_str);
        let name = self.owner.map(str::to_owned).or_else(|| self.controller());
        let generated = || text("generateName").map(|name| name.trim_end_matches('-'));
        let name = name.or_else(|| text("name").or_else(generated).map(str::to_owned));
        // The API server sees to it that names are names.
        name.filter(|name| is_name(name))
            .unwrap_or_else(|| "workload".to_owned())
    }

    /// From the pod's controller, of which a ReplicaSet is named after its Deployment, and a Job may be after its CronJob.
    fn controller(&self) -> Option<String> {
        let metadata = self.metadata();
        let owners = list(metadata, "ownerReferences");
        let owner = owners.iter().find(|owner| owner["controller"] == true)?;
        let (kind, name) = (owner["kind"].as_str()?, owner["name"].as_str()?);
        let short = match kind {
            "ReplicaSet" => {
                let hash = object(metadata, "labels").get("pod-template-hash");
                hash.and_then(Value::as_str)
                    .and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-'))
            }
            "Job" => name.rsplit_once('-').and_then(|(cron_job, minute)| {
                let scheduled = minute.len() >= 8 && minute.bytes().all(|c| c.is_ascii_digit());
                scheduled.then_some(cron_job)
            }),
            _ => None,
        };
        Some(short.unwrap_or(name).to_owned())
    }
}
