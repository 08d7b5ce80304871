//! The keys of an issuer that are fetched from a URL, in the background: requests never wait for them.
//!
//! Until the first set is there, tokens of the issuer are refused. A set that cannot be fetched leaves the one before in
//! force.

use std::{
    convert::Infallible,
    path::PathBuf,
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use http::{HeaderValue, Uri, uri::PathAndQuery};
use tokio::{
    sync::Notify,
    task,
    time::{Instant, sleep, timeout},
};

use super::{
    fetch::{self, FetchError},
    keys::{KeyError, KeySet},
};
use crate::{telemetry::metrics::Metrics, tls::origin::Origins};

/// How often a set is fetched again; Envoy's default.
const REFRESH: Duration = Duration::from_secs(300);
/// How often at most, when tokens name keys that are not in it: anybody can make such tokens.
const EARLY: Duration = Duration::from_secs(10);
/// After a failure; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often it is looked for places that nobody follows, beside when one is new.
const LOOK: Duration = Duration::from_secs(10);

/// Where a set is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    uri: Uri,
    /// A file of roots; `None`: the system's public ones.
    pub roots: Option<PathBuf>,
}

/// A set at a URL, shared by all configurations that name it, so that a reload keeps what is known.
#[derive(Debug)]
pub struct KeyUrl {
    place: Place,
    keys: ArcSwapOption<KeySet>,
    early: Arc<Notify>,
    /// Somebody fetches it.
    followed: AtomicBool,
}

/// The URLs in use.
static ALL: Mutex<Vec<Weak<KeyUrl>>> = Mutex::new(Vec::new());
/// There is a new one.
static NEW: Notify = Notify::const_new();

impl Place {
    /// `None`: it is not an `http` or `https` URL with a host, or has a user in it, whose password logs would show.
    pub fn parse(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let known = matches!(uri.scheme_str(), Some("http" | "https"));
        let authority = uri.authority()?.as_str();
        let good = known && !authority.contains('@') && HeaderValue::from_str(authority).is_ok();
        let named = uri.host().is_some_and(|host| !host.is_empty());
        (good && named).then_some(Self { uri, roots: None })
    }

    pub fn is_https(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    /// A name or an address, the latter without brackets.
    pub(super) fn host(&self) -> &str {
        let host = self.uri.host().unwrap_or_default();
        host.trim_start_matches('[').trim_end_matches(']')
    }

    pub(super) fn port(&self) -> u16 {
        let default = if self.is_https() { 443 } else { 80 };
        self.uri.port_u16().unwrap_or(default)
    }

    /// In the form that a server wants.
    pub(super) fn target(&self) -> Uri {
        let target = self.uri.path_and_query().cloned();
        Uri::from(target.unwrap_or_else(|| PathAndQuery::from_static("/")))
    }

    pub(super) fn host_field(&self) -> HeaderValue {
        let authority = self.uri.authority().map_or("", |it| it.as_str());
        // Tried when it was parsed.
        HeaderValue::from_str(authority).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// For logs and metrics: a query may be a secret.
    fn shown(&self) -> String {
        let scheme = self.uri.scheme_str().unwrap_or_default();
        let authority = self.uri.authority().map_or("", |it| it.as_str());
        format!("{scheme}://{authority}{}", self.uri.path())
    }
}

impl KeyUrl {
    /// The one at `place`, which may be known already.
    pub fn at(place: Place) -> Arc<Self> {
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|each| each.strong_count() > 0);
        let mut known = all.iter().filter_map(Weak::upgrade);
        if let Some(known) = known.find(|each| each.place == place) {
            return known;
        }
        let new = Arc::new(Self {
            place,
            keys: ArcSwapOption::empty(),
            early: Arc::default(),
            followed: AtomicBool::new(false),
        });
        all.push(Arc::downgrade(&new));
        NEW.notify_one();
        new
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    pub fn keys(&self) -> Option<Arc<KeySet>> {
        self.keys.load_full()
    }

    pub fn ask_early(&self) {
        self.early.notify_one();
    }
}

/// Fetches every set that is in use, and goes on doing so. Several may run in one process: each set is fetched by one.
pub async fn follow(metrics: Arc<Metrics>) -> Infallible {
    let origins = Rc::new(Origins::default());
    loop {
        let all = ALL.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for url in all {
            let free = |url: &Arc<KeyUrl>| !url.followed.swap(true, Ordering::AcqRel);
            if url.upgrade().as_ref().is_some_and(free) {
                let following = Following {
                    url,
                    origins: origins.clone(),
                    metrics: metrics.clone(),
                };
                task::spawn_local(following.run());
            }
        }
        // Either way it is looked again.
        let _ = timeout(LOOK, NEW.notified()).await;
    }
}

/// One set, until no configuration names it.
struct Following {
    url: Weak<KeyUrl>,
    origins: Rc<Origins>,
    metrics: Arc<Metrics>,
}

impl Following {
    async fn run(self) {
        let mut pause = FIRST_PAUSE;
        while let Some(url) = self.url.upgrade() {
            let started = Instant::now();
            let good = self.refresh(&url).await;
            let early = url.early.clone();
            drop(url);
            if good {
                pause = FIRST_PAUSE;
                // Whichever it is, it is time.
                let _ = timeout(REFRESH, early.notified()).await;
                sleep(EARLY.saturating_sub(started.elapsed())).await;
            } else {
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Whether there is a good set.
    async fn refresh(&self, url: &KeyUrl) -> bool {
        let shown = url.place.shown();
        let result = self.fetch(&url.place).await;
        let code = result.as_ref().map_or_else(BadSet::code, |_| "ok");
        let labels = [shown.as_str(), code];
        self.metrics.jwks_fetches.with_label_values(&labels).inc();
        match result {
            Ok(keys) => {
                let ids = |keys: &KeySet| keys.keys.iter().map(|key| key.id.clone()).collect();
                let ids: Vec<Option<String>> = ids(&keys);
                let old = url.keys.swap(Some(Arc::new(keys)));
                let same = |old: &Arc<KeySet>| old.keys.iter().map(|key| &key.id).eq(&ids);
                if !old.as_ref().is_some_and(same) {
                    tracing::info!(url = shown, keys = ids.len(), "new keys for tokens");
                }
                true
            }
            Err(error) => {
                match url.keys().is_some() {
                    true => {
                        tracing::warn!(url = shown, %error, "the keys for tokens stay as they were");
                    }
                    false => tracing::error!(
                        url = shown,
                        %error,
                        "there are no keys for tokens, which are refused until there are"
                    ),
                }
                false
            }
        }
    }

    async fn fetch(&self, place: &Place) -> Result<KeySet, BadSet> {
        let text = fetch::fetch(place, &self.origins).await?;
        // A large set takes a while, in which the admin endpoints are to answer.
        let parsed = task::spawn_blocking(move || KeySet::parse(&text)).await;
        Ok(parsed.map_err(|_| BadSet::Interrupted)??)
    }
}

impl Drop for Following {
    /// Somebody else may take over.
    fn drop(&mut self) {
        if let Some(url) = self.url.upgrade() {
            url.followed.store(false, Ordering::Release);
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum BadSet {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Keys(#[from] KeyError),
    #[error("reading them was interrupted")]
    Interrupted,
}

impl BadSet {
    fn code(&self) -> &'static str {
        match self {
            Self::Fetch(error) => error.code(),
            Self::Keys(_) => "not_a_key_set",
            Self::Interrupted => "interrupted",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let place = Place::parse("https://[::1]:8443/keys?secret=1").unwrap();
        assert_eq!((place.host(), place.port()), ("::1", 8443));
        assert_eq!(place.target(), "/keys?secret=1");
        assert_eq!(place.host_field(), "[::1]:8443");
        assert_eq!(place.shown(), "https://[::1]:8443/keys");
        let bare = Place::parse("http://issuer.example").unwrap();
        assert_eq!((bare.port(), bare.is_https()), (80, false));
        assert_eq!(bare.target(), "/");
        for wrong in ["", "/keys", "issuer.example", "ftp://a/", "https://u:p@a/"] {
            assert!(Place::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn one_place_is_one_source() {
        let at = |url: &str| KeyUrl::at(Place::parse(url).unwrap());
        let first = at("http://a/1");
        assert!(Arc::ptr_eq(&first, &at("http://a/1")));
        assert!(!Arc::ptr_eq(&first, &at("http://a/2")));
    }
}
