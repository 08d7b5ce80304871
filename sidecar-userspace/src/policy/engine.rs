//! The decision: DENY before ALLOW, AUDIT beside them.

use std::{fmt, sync::Arc};

use super::{
    attribute::Attribute,
    compile::{self, CompileError, Condition, Rule},
    facts::Facts,
    index::Index,
    spec::{Action, Policy, Posture},
};

/// The policies of one direction, ready to be asked.
#[derive(Debug, Clone)]
pub struct PolicySet {
    posture: Posture,
    policies: Vec<Policy>,
    /// For requests.
    http: Rules,
    /// For connections whose bytes are opaque.
    tcp: Rules,
    http_only: bool,
    reads_paths: bool,
}

/// Rules in the order in which they are asked: DENY, AUDIT, ALLOW.
#[derive(Debug, Clone, Default)]
struct Rules {
    rules: Vec<Rule>,
    index: Index,
}

/// A rule of a policy, for logs and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RuleName {
    pub policy: Arc<str>,
    /// Counted from 0 in the policy's `rules`; `None`: the policies refuse because no rule matched.
    pub rule: Option<usize>,
}

/// Name of what decides where no policy does.
pub const DEFAULT: &str = "default";

/// What became of one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Who refused; `None`: allowed.
    pub denied_by: Option<RuleName>,
    /// Rules of AUDIT policies that matched, one for each policy.
    pub audited_by: Vec<RuleName>,
}

/// What `explain` says of one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Considered {
    pub policy: Arc<str>,
    pub action: Action,
    /// `None`: the policy has no rules.
    pub rule: Option<usize>,
    pub matched: bool,
    pub why: String,
}

impl PolicySet {
    /// # Errors
    ///
    /// A mistake in a policy.
    pub fn new(posture: Posture, policies: Vec<Policy>) -> Result<Self, CompileError> {
        let all = compile::rules(&policies)?;
        let http_only = all.iter().any(Rule::is_http_only);
        let path = |condition: &Condition| condition.attribute == Attribute::Path;
        let reads_paths = all.iter().flat_map(Rule::conditions).any(path);
        let tcp = all.iter().filter_map(Rule::for_tcp).collect();
        Ok(Self {
            posture,
            http: Rules::new(all),
            tcp: Rules::new(tcp),
            policies,
            http_only,
            reads_paths,
        })
    }

    /// No policies: everything is allowed.
    pub fn open() -> Self {
        Self {
            posture: Posture::Allow,
            policies: Vec::new(),
            http: Rules::default(),
            tcp: Rules::default(),
            http_only: false,
            reads_paths: false,
        }
    }

    /// Whether there is nothing to ask.
    pub fn is_open(&self) -> bool {
        self.policies.is_empty() && self.posture == Posture::Allow
    }

    pub fn posture(&self) -> Posture {
        self.posture
    }

    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }

    /// Whether a rule compares paths, so that they have to be normalised.
    pub fn reads_paths(&self) -> bool {
        self.reads_paths
    }

    /// Whether a rule compares anything that only requests have.
    pub fn is_http_only(&self) -> bool {
        self.http_only
    }

    pub fn decide(&self, facts: &Facts<'_>) -> Decision {
        let rules = self.rules(facts);
        let mut decision = Decision {
            denied_by: None,
            audited_by: Vec::new(),
        };
        if self.is_open() {
            return decision;
        }
        let mut allowed = self.allows_by_default();
        let mut audited = None;
        for at in rules.index.candidates(facts).iter() {
            let Some(rule) = rules.rules.get(at) else {
                continue;
            };
            let asked = match rule.action {
                Action::Deny => decision.denied_by.is_none(),
                Action::Audit => audited != Some(rule.policy),
                Action::Allow => !allowed && decision.denied_by.is_none(),
            };
            if !asked || !rule.matches(facts) {
                continue;
            }
            match rule.action {
                Action::Deny => decision.denied_by = Some(self.name(rule)),
                Action::Allow => allowed = true,
                Action::Audit => {
                    audited = Some(rule.policy);
                    decision.audited_by.push(self.name(rule));
                }
            }
        }
        if !allowed && decision.denied_by.is_none() {
            decision.denied_by = Some(RuleName {
                policy: DEFAULT.into(),
                rule: None,
            });
        }
        decision
    }

    /// Every rule in the order in which it is asked, and what comes of it. Slow: for people.
    pub fn explain(&self, facts: &Facts<'_>) -> Vec<Considered> {
        let mut considered = Vec::new();
        for action in [Action::Deny, Action::Audit, Action::Allow] {
            let policies = self.policies.iter().enumerate();
            for (at, policy) in policies.filter(|(_, policy)| policy.action == action) {
                if policy.rules.is_empty() {
                    considered.push(Considered {
                        policy: policy.name.clone(),
                        action,
                        rule: None,
                        matched: false,
                        why: "the policy has no rules and matches nothing".to_owned(),
                    });
                }
                let rules = self.rules(facts).rules.iter();
                let rules: Vec<&Rule> = rules.filter(|rule| rule.policy == at).collect();
                for number in 0..policy.rules.len() {
                    let rule = rules.iter().find(|rule| rule.number == number);
                    let why = rule.map(|rule| why_not(rule, facts));
                    considered.push(Considered {
                        policy: policy.name.clone(),
                        action,
                        rule: Some(number),
                        matched: rule.is_some_and(|rule| rule.matches(facts)),
                        why: match why {
                            None => "ignored: it needs a request, and this is a TCP connection"
                                .to_owned(),
                            Some(None) => "all of it matches".to_owned(),
                            Some(Some(why)) => why,
                        },
                    });
                }
            }
        }
        considered
    }

    /// What holds where no rule matches.
    pub fn allows_by_default(&self) -> bool {
        let has_allow = self
            .policies
            .iter()
            .any(|policy| policy.action == Action::Allow);
        self.posture == Posture::Allow && !has_allow
    }

    fn rules(&self, facts: &Facts<'_>) -> &Rules {
        if facts.http.is_some() {
            &self.http
        } else {
            &self.tcp
        }
    }

    fn name(&self, rule: &Rule) -> RuleName {
        let policy = self.policies.get(rule.policy);
        RuleName {
            policy: policy.map_or_else(|| DEFAULT.into(), |policy| policy.name.clone()),
            rule: Some(rule.number),
        }
    }
}

/// The rest follows from these.
impl PartialEq for PolicySet {
    fn eq(&self, other: &Self) -> bool {
        self.posture == other.posture && self.policies == other.policies
    }
}

impl Rules {
    fn new(mut rules: Vec<Rule>) -> Self {
        rules.sort_by_key(|rule| match rule.action {
            Action::Deny => 0,
            Action::Audit => 1,
            Action::Allow => 2,
        });
        let index = Index::new(&rules);
        Self { rules, index }
    }
}

/// The first thing of `rule` that does not hold.
fn why_not(rule: &Rule, facts: &Facts<'_>) -> Option<String> {
    let failing = |conditions: &[Condition]| {
        let mut conditions = conditions.iter();
        conditions
            .find(|condition| !condition.holds(facts, rule.action))
            .map(|condition| describe(condition, facts))
    };
    for (part, alternatives) in [("from", &rule.from), ("to", &rule.to)] {
        let failed: Vec<String> = alternatives
            .iter()
            .map_while(|each| failing(each))
            .collect();
        if !alternatives.is_empty() && failed.len() == alternatives.len() {
            return Some(format!("{part}: {}", failed.join("; ")));
        }
    }
    failing(&rule.when).map(|failed| format!("when: {failed}"))
}

fn describe(condition: &Condition, facts: &Facts<'_>) -> String {
    let attribute = &condition.attribute;
    let mut values = Vec::new();
    match attribute {
        Attribute::DestinationPort => {
            values.extend(facts.destination_port.map(|port| port.to_string()))
        }
        Attribute::SourceIp | Attribute::DestinationIp => {
            values.extend(attribute.ip(facts).map(|ip| ip.to_string()));
        }
        _ => attribute.each_text(facts, &mut |text| values.push(text.to_owned())),
    }
    let has = match values.as_slice() {
        [] => "there is none".to_owned(),
        values => format!("it is {}", values.join(", ")),
    };
    let not = if condition.negated { "none of " } else { "" };
    format!("{attribute} has to be {not}{}, and {has}", condition.values)
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Some(rule) => write!(f, "{} rules[{rule}]", self.policy),
            None => f.write_str(&self.policy),
        }
    }
}
