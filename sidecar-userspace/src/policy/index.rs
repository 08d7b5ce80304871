//! Which rules may match: one look-up for each attribute instead of one comparison for each rule.
//!
//! Each attribute that rules need has a dimension: from a value to the rules that it may satisfy, as a set of bits.
//! Their intersection are the candidates; only these are evaluated. A rule is left out only if it cannot match.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use super::{
    attribute::Attribute,
    compile::{Condition, Rule, Values},
    facts::Facts,
    pattern::{Path, Text},
};
use crate::model::Cidr;

/// Attributes that are looked up at most; the ones that most rules need.
const MAX_DIMENSIONS: usize = 12;

/// A set of rules by their position.
#[derive(Debug, Clone, Default)]
pub struct Bits(Vec<u64>);

/// The rules that one value may satisfy, in the form that is added to a set faster.
#[derive(Debug, Clone)]
enum Satisfied {
    Few(Vec<u32>),
    Many(Bits),
}

impl Default for Satisfied {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

#[derive(Debug, Clone, Default)]
pub struct Index {
    rules: usize,
    dimensions: Vec<Dimension>,
}

#[derive(Debug, Clone)]
struct Dimension {
    attribute: Attribute,
    /// Rules that any value satisfies, or that do not need one.
    any: Bits,
    keys: Keys,
}

/// Positions of rules by what they compare with.
#[derive(Debug, Clone, Default)]
struct Keys {
    exact: HashMap<Box<str>, Satisfied>,
    prefixes: Chains,
    /// By the reversed text.
    suffixes: Chains,
    ports: HashMap<u16, Satisfied>,
    /// By length of the prefix.
    ranges: BTreeMap<u8, HashMap<IpAddr, Satisfied>>,
}

/// Texts that others may begin with: sorted, each with the longest other one that it begins with.
#[derive(Debug, Clone, Default)]
struct Chains {
    texts: Vec<(Box<[u8]>, Satisfied)>,
    parents: Vec<Option<u32>>,
}

impl Index {
    pub fn new(rules: &[Rule]) -> Self {
        let mut needs: HashMap<&Attribute, Vec<(u32, Vec<&Values>)>> = HashMap::new();
        for (at, rule) in (0..).zip(rules) {
            for (attribute, values) in needed(rule) {
                needs.entry(attribute).or_default().push((at, values));
            }
        }
        let mut needs: Vec<_> = needs.into_iter().collect();
        needs.sort_by_key(|(attribute, rules)| (usize::MAX - rules.len(), attribute.to_string()));
        needs.truncate(MAX_DIMENSIONS);
        let dimension = |(attribute, needing): (&Attribute, Vec<(u32, Vec<&Values>)>)| {
            let mut any = Bits::full(rules.len());
            let mut keys = Keys::default();
            for (rule, values) in needing {
                if !values.iter().any(|values| is_any(values)) {
                    any.clear(rule);
                    values.into_iter().for_each(|values| keys.add(values, rule));
                }
            }
            keys.finish(rules.len());
            Dimension {
                attribute: attribute.clone(),
                any,
                keys,
            }
        };
        Self {
            rules: rules.len(),
            dimensions: needs.into_iter().map(dimension).collect(),
        }
    }

    /// The rules that may match, among them all that do.
    pub fn candidates(&self, facts: &Facts<'_>) -> Bits {
        let mut candidates = Bits::full(self.rules);
        let mut found = Bits::default();
        for dimension in &self.dimensions {
            found.0.clone_from(&dimension.any.0);
            let keys = &dimension.keys;
            match dimension.attribute {
                Attribute::DestinationPort => {
                    let rules = facts
                        .destination_port
                        .and_then(|port| keys.ports.get(&port));
                    found.add(rules);
                }
                Attribute::SourceIp | Attribute::DestinationIp => {
                    if let Some(ip) = dimension.attribute.ip(facts) {
                        keys.with_address(ip, &mut found);
                    }
                }
                ref attribute => {
                    attribute.each_text(facts, &mut |text| keys.with_text(text, &mut found))
                }
            }
            candidates.and(&found);
            if candidates.is_empty() {
                break;
            }
        }
        candidates
    }
}

/// What `rule` cannot match without: attributes that it compares in each alternative of one of its parts.
fn needed(rule: &Rule) -> Vec<(&Attribute, Vec<&Values>)> {
    let when = std::slice::from_ref(&rule.when);
    let mut needed: Vec<(&Attribute, Vec<&Values>)> = Vec::new();
    for alternatives in [rule.to.as_slice(), rule.from.as_slice(), when] {
        let Some(first) = alternatives.first() else {
            continue;
        };
        for condition in first.iter().filter(|condition| !condition.negated) {
            let attribute = &condition.attribute;
            let compared = |alternative: &'_ Vec<Condition>| {
                let mut positive = alternative.iter().filter(|condition| !condition.negated);
                positive.position(|condition| condition.attribute == *attribute)
            };
            let everywhere = alternatives.iter().all(|each| compared(each).is_some());
            if everywhere && needed.iter().all(|(known, _)| *known != attribute) {
                let values = alternatives.iter().filter_map(|alternative| {
                    let mut positive = alternative.iter().filter(|condition| !condition.negated);
                    let found = positive.find(|condition| condition.attribute == *attribute);
                    found.map(|condition| &condition.values)
                });
                needed.push((attribute, values.collect()));
            }
        }
    }
    needed
}

fn is_any(values: &Values) -> bool {
    match values {
        Values::Text(texts) => texts.contains(&Text::Present),
        Values::Path(paths) => paths.contains(&Path::Text(Text::Present)),
        Values::Ip(_) | Values::Port(_) => false,
    }
}

impl Keys {
    fn add(&mut self, values: &Values, rule: u32) {
        match values {
            Values::Text(texts) => texts.iter().for_each(|text| self.add_text(text, rule)),
            Values::Path(paths) => paths.iter().for_each(|path| match path {
                Path::Text(text) => self.add_text(text, rule),
                Path::Template(template) => self.prefixes.add(template.prefix().bytes(), rule),
            }),
            Values::Port(ports) => {
                for port in ports {
                    self.ports.entry(*port).or_default().push(rule);
                }
            }
            Values::Ip(ranges) => {
                for range in ranges {
                    let of_length = self.ranges.entry(range.prefix_bits()).or_default();
                    of_length.entry(range.address()).or_default().push(rule);
                }
            }
        }
    }

    fn add_text(&mut self, text: &Text, rule: u32) {
        match text {
            Text::Exact(text) => self.exact.entry(text.clone()).or_default().push(rule),
            Text::Prefix(text) => self.prefixes.add(text.bytes(), rule),
            Text::Suffix(text) => self.suffixes.add(text.bytes().rev(), rule),
            // Its rule is among `any`.
            Text::Present => {}
        }
    }

    /// `rules`: how many there are.
    fn finish(&mut self, rules: usize) {
        self.prefixes.finish();
        self.suffixes.finish();
        let chained = self
            .prefixes
            .texts
            .iter_mut()
            .chain(&mut self.suffixes.texts);
        let ranges = self.ranges.values_mut().flat_map(HashMap::values_mut);
        let all = self.exact.values_mut().chain(self.ports.values_mut());
        all.chain(ranges)
            .chain(chained.map(|(_, satisfied)| satisfied))
            .for_each(|satisfied| satisfied.settle(rules));
    }

    fn with_text(&self, text: &str, found: &mut Bits) {
        found.add(self.exact.get(text));
        self.prefixes.of(|| text.bytes(), found);
        self.suffixes.of(|| text.bytes().rev(), found);
    }

    fn with_address(&self, ip: IpAddr, found: &mut Bits) {
        let ip = ip.to_canonical();
        for (bits, ranges) in &self.ranges {
            if let Some(around) = Cidr::around(ip, *bits) {
                found.add(ranges.get(&around.address()));
            }
        }
    }
}

impl Chains {
    fn add(&mut self, text: impl Iterator<Item = u8>, rule: u32) {
        self.texts
            .push((text.collect(), Satisfied::Few(vec![rule])));
    }

    fn finish(&mut self) {
        self.texts.sort_by(|a, b| a.0.cmp(&b.0));
        self.texts.dedup_by(|later, first| {
            let same = later.0 == first.0;
            if same {
                first.1.append(&mut later.1);
            }
            same
        });
        // The beginnings of a text stand before it, the longest one last: a stack holds those that are still open.
        let mut open: Vec<u32> = Vec::new();
        for (at, (text, _)) in (0..).zip(&self.texts) {
            let begins = |candidate: u32| {
                let found = self
                    .texts
                    .get(usize::try_from(candidate).unwrap_or(usize::MAX));
                found.is_some_and(|(begin, _)| text.starts_with(begin))
            };
            while open.last().is_some_and(|last| !begins(*last)) {
                open.pop();
            }
            self.parents.push(open.last().copied());
            open.push(at);
        }
    }

    /// Every text here that begins what `bytes` gives stands at or before its place in the order, and so does each of
    /// them before the next longer one: the chain of parents has them all.
    fn of<I: Iterator<Item = u8>>(&self, bytes: impl Fn() -> I, found: &mut Bits) {
        if self.texts.is_empty() {
            return;
        }
        let not_after = |text: &[u8]| text.iter().copied().le(bytes());
        let mut at = self
            .texts
            .partition_point(|(text, _)| not_after(text))
            .checked_sub(1);
        let mut is_beginning = false;
        while let Some((position, (text, rules))) =
            at.and_then(|at| Some((at, self.texts.get(at)?)))
        {
            // What begins a beginning begins the whole.
            is_beginning = is_beginning || {
                let mut bytes = bytes();
                text.iter().all(|byte| bytes.next() == Some(*byte))
            };
            if is_beginning {
                found.add(Some(rules));
            }
            let parent = self.parents.get(position).copied().flatten();
            at = parent.and_then(|parent| usize::try_from(parent).ok());
        }
    }
}

impl Satisfied {
    fn push(&mut self, rule: u32) {
        match self {
            Self::Few(rules) => rules.push(rule),
            Self::Many(rules) => rules.set(rule),
        }
    }

    fn append(&mut self, other: &mut Self) {
        if let Self::Few(rules) = other {
            rules.drain(..).for_each(|rule| self.push(rule));
        }
    }

    fn settle(&mut self, rules: usize) {
        let words = rules.div_ceil(64);
        if let Self::Few(few) = self
            && few.len() > words
        {
            let mut many = Bits(vec![0; words]);
            few.iter().for_each(|rule| many.set(*rule));
            *self = Self::Many(many);
        }
    }
}

impl Bits {
    fn full(count: usize) -> Self {
        let mut words = vec![u64::MAX; count.div_ceil(64)];
        if let (Some(last), rest @ 1..) = (words.last_mut(), count % 64) {
            *last = (1 << rest) - 1;
        }
        Self(words)
    }

    fn clear(&mut self, position: u32) {
        if let Some(word) = self.0.get_mut(position as usize / 64) {
            *word &= !(1 << (position % 64));
        }
    }

    fn set(&mut self, position: u32) {
        if let Some(word) = self.0.get_mut(position as usize / 64) {
            *word |= 1 << (position % 64);
        }
    }

    fn add(&mut self, satisfied: Option<&Satisfied>) {
        match satisfied {
            None => {}
            Some(Satisfied::Few(rules)) => rules.iter().for_each(|rule| self.set(*rule)),
            Some(Satisfied::Many(rules)) => {
                for (word, other) in self.0.iter_mut().zip(&rules.0) {
                    *word |= other;
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    fn and(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word &= other;
        }
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                left &= left.checked_sub(1)?;
                Some(at * 64 + bit)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against comparing with each.
        #[test]
        fn chains_find_every_beginning(
            texts in prop::collection::vec("[ab]{0,5}", 0..40), value in "[abc]{0,8}",
        ) {
            let mut chains = Chains::default();
            for (rule, text) in (0..).zip(&texts) {
                chains.add(text.bytes(), rule);
            }
            chains.finish();
            let mut found = Bits(vec![0]);
            chains.of(|| value.bytes(), &mut found);
            let expected: Vec<usize> = (0..texts.len()).filter(|at| value.starts_with(&texts[*at])).collect();
            prop_assert_eq!(found.iter().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn bits_are_as_many_as_rules() {
        for count in [0, 1, 63, 64, 65, 128, 1000] {
            let mut bits = Bits::full(count);
            assert_eq!(bits.iter().count(), count);
            bits.clear(0);
            assert_eq!(bits.iter().count(), count.saturating_sub(1));
        }
    }
}
