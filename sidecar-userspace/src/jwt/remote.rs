//! The keys of an issuer that are fetched from a URL, in the background: requests never wait for them.
//!
//! Until the first set is there, tokens of the issuer are refused. A set that cannot be fetched leaves the one before in
//! force.

use std::{
    convert::Infallible,
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::{
    sync::Notify,
    task,
    time::{Instant, sleep, timeout},
};

use super::keys::{KeyError, KeySet, SET_BYTES_MAX};
use crate::{
    fetch::{self, FetchError, Place},
    telemetry::metrics::Metrics,
    tls::origin::Origins,
};

/// How often a set is fetched again; Envoy's default.
const REFRESH: Duration = Duration::from_secs(300);
/// How often at most, when tokens name keys that are not in it: anybody can make such tokens.
const EARLY: Duration = Duration::from_secs(10);
/// After a failure; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often it is looked for places that nobody follows, beside when one is new.
const LOOK: Duration = Duration::from_secs(10);

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
        let text = fetch::text(place, &self.origins, SET_BYTES_MAX).await?;
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
            Self::Fetch(FetchError::NotText) | Self::Keys(_) => "not_a_key_set",
            Self::Fetch(error) => error.code(),
            Self::Interrupted => "interrupted",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_is_one_source() {
        let at = |url: &str| KeyUrl::at(Place::parse(url).unwrap());
        let first = at("http://a/1");
        assert!(Arc::ptr_eq(&first, &at("http://a/1")));
        assert!(!Arc::ptr_eq(&first, &at("http://a/2")));
    }
}
