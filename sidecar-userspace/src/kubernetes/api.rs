//! The API server as a pod reaches it: address from the environment, token and roots from the service account's directory.

use std::{
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use serde_json::Value;

use crate::{
    fetch::{FetchError, Place, exchange},
    tls::origin::Origins,
};

/// Where Kubernetes puts the service account of a pod.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Bytes of an answer: objects have 1.5 MiB at most.
const ANSWER_MAX: usize = 4 * 1024 * 1024;

/// How a PATCH is to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 7386: lists are replaced.
    Merge,
    /// Kubernetes' own: lists are merged by the keys that the API says.
    StrategicMerge,
}

/// Lives as long as whoever asks. Not to be shared between threads.
#[derive(Debug)]
pub struct Api {
    /// Such as `https://10.96.0.1:443`.
    server: String,
    /// Token, roots and namespace; read again for each call, since the kubelet renews them.
    directory: PathBuf,
    origins: Origins,
}

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(
        "{0} is not set, so this is no pod of a cluster: set it, and KUBERNETES_SERVICE_PORT, or do without the API server"
    )]
    NoCluster(&'static str),
    #[error("cannot read the service account's {path}: {source}")]
    ServiceAccount { path: PathBuf, source: io::Error },
    #[error("{0} is no address of an API server")]
    Address(String),
    #[error("cannot ask the API server for {what}: {source}")]
    Fetch { what: String, source: FetchError },
    /// Somebody else was quicker: read again.
    #[error("{0} has changed meanwhile")]
    Conflict(String),
    #[error("{0} does not exist")]
    NotFound(String),
    #[error("the API server says {status} to {what}: {message}")]
    Status {
        what: String,
        status: StatusCode,
        message: String,
    },
    #[error("the API server's answer to {0} is not JSON")]
    NotJson(String),
}

impl Api {
    /// The API server of the pod that this runs in. `directory`: see [`SERVICE_ACCOUNT`].
    ///
    /// # Errors
    ///
    /// It runs in none.
    pub fn of_pod(directory: &Path) -> Result<Self, ApiError> {
        let variable = |name| std::env::var(name).map_err(|_| ApiError::NoCluster(name));
        let host = variable("KUBERNETES_SERVICE_HOST")?;
        let port = variable("KUBERNETES_SERVICE_PORT")?;
        let host = match host.contains(':') {
            true => format!("[{host}]"),
            false => host,
        };
        Self::at(&format!("https://{host}:{port}"), directory)
    }

    /// The API server at a URL such as `https://10.96.0.1:443`.
    ///
    /// # Errors
    ///
    /// It is none.
    pub fn at(server: &str, directory: &Path) -> Result<Self, ApiError> {
        let api = Self {
            server: server.to_owned(),
            directory: directory.to_owned(),
            origins: Origins::default(),
        };
        api.place("/").map(|_| api)
    }

    /// The pod's own namespace.
    ///
    /// # Errors
    ///
    /// The service account does not say.
    pub fn namespace(&self) -> Result<String, ApiError> {
        Ok(self.read("namespace")?.trim().to_owned())
    }

    /// # Errors
    ///
    /// The object cannot be had.
    pub async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.call(Method::GET, path, None).await
    }

    /// Creates an object. [`ApiError::Conflict`]: there is one of that name.
    ///
    /// # Errors
    ///
    /// It was not created.
    pub async fn post(&self, path: &str, object: &Value) -> Result<Value, ApiError> {
        self.call(Method::POST, path, Some(("application/json", object)))
            .await
    }

    /// Replaces an object. [`ApiError::Conflict`]: it is no longer of the `resourceVersion` that `object` has.
    ///
    /// # Errors
    ///
    /// It was not replaced.
    pub async fn put(&self, path: &str, object: &Value) -> Result<Value, ApiError> {
        self.call(Method::PUT, path, Some(("application/json", object)))
            .await
    }

    /// Changes an object. [`ApiError::Conflict`]: as for [`put`](Self::put).
    ///
    /// # Errors
    ///
    /// It was not changed.
    pub async fn patch(
        &self,
        path: &str,
        kind: PatchKind,
        change: &Value,
    ) -> Result<Value, ApiError> {
        let kind = match kind {
            PatchKind::Merge => "application/merge-patch+json",
            PatchKind::StrategicMerge => "application/strategic-merge-patch+json",
        };
        self.call(Method::PATCH, path, Some((kind, change))).await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, &Value)>,
    ) -> Result<Value, ApiError> {
        let what = format!("{method} {path}");
        let mut request = Request::new(Full::default());
        *request.method_mut() = method;
        let fields = request.headers_mut();
        fields.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        fields.insert(header::AUTHORIZATION, self.authorization()?);
        if let Some((kind, body)) = body {
            fields.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            *request.body_mut() = Full::new(Bytes::from(body.to_string()));
        }
        let place = self.place(path)?;
        let answer = exchange(&place, &self.origins, request, ANSWER_MAX).await;
        let answer = answer.map_err(|source| ApiError::Fetch {
            what: what.clone(),
            source,
        })?;
        let status = answer.status();
        let body: Option<Value> = serde_json::from_slice(answer.body()).ok();
        if status.is_success() {
            return body.ok_or(ApiError::NotJson(what));
        }
        Err(match status {
            StatusCode::CONFLICT => ApiError::Conflict(path.to_owned()),
            StatusCode::NOT_FOUND => ApiError::NotFound(path.to_owned()),
            _ => {
                let message = body.as_ref().and_then(|body| body["message"].as_str());
                let message = message.unwrap_or("nothing more").chars();
                ApiError::Status {
                    what,
                    status,
                    message: message.take(500).filter(|c| !c.is_control()).collect(),
                }
            }
        })
    }

    fn place(&self, path: &str) -> Result<Place, ApiError> {
        let url = format!("{}{path}", self.server);
        let mut place = Place::parse(&url).ok_or(ApiError::Address(url))?;
        place.roots = Some(self.directory.join("ca.crt"));
        Ok(place)
    }

    fn authorization(&self) -> Result<HeaderValue, ApiError> {
        let token = self.read("token")?;
        let value = HeaderValue::from_str(&format!("Bearer {}", token.trim()));
        let mut value = value.map_err(|_| ApiError::ServiceAccount {
            path: self.directory.join("token"),
            source: io::Error::other("it is no token"),
        })?;
        value.set_sensitive(true);
        Ok(value)
    }

    fn read(&self, name: &str) -> Result<String, ApiError> {
        let path = self.directory.join(name);
        std::fs::read_to_string(&path).map_err(|source| ApiError::ServiceAccount { path, source })
    }
}
