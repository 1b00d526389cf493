//! Holds what the service says against the client's own model: each wallet, its ledger, its row in the read model, and
//! all the money together.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use reqwest::header::{HeaderMap, LINK};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::loadtest::Phase;
use crate::loadtest::drive::{Run, in_parallel, lock};
use crate::loadtest::model::{CURRENCY, Expected, Model, money_text};
use crate::loadtest::report::Check;
use crate::money::Amount;

const PAGE: u32 = 1_000;

/// The part of `GET /wallets/{id}`, and of a row of `GET /wallets`, that is wanted. Amounts stay the text that they are.
#[derive(Deserialize)]
struct WalletAnswer<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    balance: &'a RawValue,
    version: i64,
}

/// The part of `GET /ledger/wallet/{id}/summary` that is wanted.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SummaryAnswer<'a> {
    #[serde(borrow)]
    total_credits: &'a RawValue,
    #[serde(borrow)]
    total_debits: &'a RawValue,
    transaction_count: i64,
}

/// How many wallets were found as they must be, and the first that was not.
#[derive(Debug)]
struct Comparison {
    name: &'static str,
    equal: u64,
    different: u64,
    /// Of those that differ, how many an operation without an answer touched.
    in_doubt: u64,
    /// The lowest number among those that differ, and how.
    first: Option<(u32, String)>,
}

impl Comparison {
    fn new(name: &'static str) -> Self {
        Comparison { name, equal: 0, different: 0, in_doubt: 0, first: None }
    }

    fn note(&mut self, wallet: u32, expected: &Expected, found: Result<(), String>) {
        let Err(difference) = found else {
            self.equal += 1;
            return;
        };
        self.different += 1;
        self.in_doubt += u64::from(expected.in_doubt);
        if self.first.as_ref().is_none_or(|(first, _)| wallet < *first) {
            self.first = Some((wallet, difference));
        }
    }

    fn into_check(self, run: &Run) -> Check {
        let wallets = run.plan.wallets();
        let expected = format!("{wallets} of {wallets} wallets as the model");
        let actual = match self.first {
            None => format!("{} of {wallets} wallets as the model", self.equal),
            Some((wallet, difference)) => {
                let doubt = match self.in_doubt {
                    0 => String::new(),
                    count => format!(", {count} of the others had an operation without an answer"),
                };
                format!("{} of {wallets}{doubt}; {}: {difference}", self.equal, run.wallet_id(wallet))
            }
        };
        Check::new(self.name, self.equal == u64::from(wallets) && self.different == 0, expected, actual)
    }
}

#[derive(Debug)]
struct Findings {
    balances: Comparison,
    versions: Comparison,
    ledger: Comparison,
    read_model: Comparison,
    money_in_wallets: i128,
    money_in_ledger: i128,
    money_in_read_model: i128,
    looked_at: u64,
}

/// Looks at everything, with the run's workers.
pub async fn prove(run: &Arc<Run>, model: &Arc<Model>) -> Vec<Check> {
    let findings = Arc::new(Mutex::new(Findings {
        balances: Comparison::new("wallet balances"),
        versions: Comparison::new("wallet versions"),
        ledger: Comparison::new("ledger totals"),
        read_model: Comparison::new("read model"),
        money_in_wallets: 0,
        money_in_ledger: 0,
        money_in_read_model: 0,
        looked_at: 0,
    }));
    let shared = (Arc::clone(run), Arc::clone(model), Arc::clone(&findings));
    in_parallel(run.workers, u64::from(run.plan.wallets()), move |number| {
        let (run, model, findings) = shared.clone();
        async move {
            // Below the number of wallets, which is a u32.
            look_at(&run, &model, &findings, number as u32).await;
            ControlFlow::Continue(())
        }
    })
    .await;
    page_through(run, model, &findings).await;
    let findings = Arc::into_inner(findings).and_then(|findings| findings.into_inner().ok());
    findings.map_or_else(Vec::new, |findings| into_checks(findings, run, model))
}

fn into_checks(findings: Findings, run: &Run, model: &Model) -> Vec<Check> {
    let expected = model.money();
    let held = [findings.money_in_wallets, findings.money_in_ledger, findings.money_in_read_model];
    let conserved = held.iter().all(|money| *money == expected);
    let actual = if conserved {
        money_text(expected)
    } else {
        let [wallets, ledger, read_model] = held.map(money_text);
        format!("wallets {wallets}, ledger {ledger}, read model {read_model}")
    };
    vec![
        findings.balances.into_check(run),
        findings.versions.into_check(run),
        findings.ledger.into_check(run),
        findings.read_model.into_check(run),
        Check::new("money conserved", conserved, money_text(expected), actual),
    ]
}

async fn look_at(run: &Run, model: &Model, findings: &Mutex<Findings>, wallet: u32) {
    let expected = &model.wallets()[wallet as usize];
    let id = run.wallet_id(wallet);
    let state = read(run, &format!("/wallets/{id}"), |body| {
        let answer: WalletAnswer<'_> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        Ok((minor_units(answer.balance)?, answer.version))
    })
    .await;
    let summary = read(run, &format!("/ledger/wallet/{id}/summary"), |body| {
        let answer: SummaryAnswer<'_> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let (credits, debits) = (minor_units(answer.total_credits)?, minor_units(answer.total_debits)?);
        Ok((credits, debits, answer.transaction_count))
    })
    .await;

    let mut findings = lock(findings);
    let (balance, version) = match state {
        Ok((balance, version)) => {
            findings.money_in_wallets += i128::from(balance);
            (same_money(expected.balance(), balance), same_version(expected.version(), version))
        }
        Err(reason) => (Err(reason.clone()), Err(reason)),
    };
    findings.balances.note(wallet, expected, balance);
    findings.versions.note(wallet, expected, version);
    let ledger = summary.and_then(|found| {
        let (credits, debits, _) = found;
        findings.money_in_ledger += i128::from(credits) - i128::from(debits);
        same_totals((expected.credits, expected.debits, expected.entries), found)
    });
    findings.ledger.note(wallet, expected, ledger);
    findings.looked_at += 2;
    run.report_progress(Phase::Proof, findings.looked_at, looks(run));
}

/// How many looks the proof takes: a wallet, its ledger and its row for each.
fn looks(run: &Run) -> u64 {
    u64::from(run.plan.wallets()) * 3
}

/// The run's wallets stand together in the read model, behind the run's name.
async fn page_through(run: &Run, model: &Model, findings: &Mutex<Findings>) {
    let mut listed = vec![None; model.wallets().len()];
    let listing = list(run, &mut listed).await;
    let mut findings = lock(findings);
    for ((number, expected), row) in (0..).zip(model.wallets()).zip(listed) {
        let found = match (row, &listing) {
            (Some((balance, version)), _) => {
                findings.money_in_read_model += i128::from(balance);
                same_money(expected.balance(), balance).and(same_version(expected.version(), version))
            }
            (None, Ok(())) => Err("not listed".to_owned()),
            (None, Err(reason)) => Err(reason.clone()),
        };
        findings.read_model.note(number, expected, found);
    }
    findings.looked_at += u64::from(run.plan.wallets());
    run.report_progress(Phase::Proof, findings.looked_at, looks(run));
}

async fn list(run: &Run, listed: &mut [Option<(i64, i64)>]) -> Result<(), String> {
    let mut path = format!("/wallets?limit={PAGE}&cursor={}", run.name);
    // Each page but the last has at least one wallet of ours, unless the pages go round in a circle.
    for _ in 0..=listed.len() {
        let answer = run.client.get(&path).await.map_err(|unanswered| unanswered.reason)?;
        if !answer.status.is_success() {
            return Err(format!("GET {path} {}", answer.quoted()));
        }
        let rows: Vec<WalletAnswer<'_>> =
            serde_json::from_slice(&answer.body).map_err(|error| format!("GET {path}: {error}"))?;
        for row in &rows {
            let Some(number) = run.wallet_number(&row.id) else {
                return Ok(());
            };
            let state = (minor_units(row.balance)?, row.version);
            if listed[number as usize].replace(state).is_some() {
                return Err(format!("GET {path} lists {} a second time", row.id));
            }
        }
        match next_page(&answer.headers) {
            Some(next) => path = next,
            None => return Ok(()),
        }
    }
    Err("the pages of GET /wallets do not end".to_owned())
}

/// The path of the next page, from a `Link` header such as `</wallets?limit=2&cursor=b>; rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    let next = links.flat_map(|value| value.split(',')).find(|link| link.contains(r#"rel="next""#))?;
    let (target, _) = next.trim().strip_prefix('<')?.split_once('>')?;
    Some(target.to_owned())
}

async fn read<T>(run: &Run, path: &str, parse: impl Fn(&[u8]) -> Result<T, String>) -> Result<T, String> {
    let answer = run.client.get(path).await.map_err(|unanswered| format!("GET {path}: {}", unanswered.reason))?;
    if !answer.status.is_success() {
        return Err(format!("GET {path} {}", answer.quoted()));
    }
    parse(&answer.body).map_err(|reason| format!("GET {path}: {reason}"))
}

/// Reads an amount exactly from the JSON number that it is.
fn minor_units(number: &RawValue) -> Result<i64, String> {
    Amount::parse(number.get(), CURRENCY).map(Amount::minor).map_err(|error| format!("{error}: {}", number.get()))
}

fn same_money(expected: i64, found: i64) -> Result<(), String> {
    let text = |minor: i64| money_text(i128::from(minor));
    if found == expected {
        return Ok(());
    }
    Err(format!("expected {}, found {}", text(expected), text(found)))
}

fn same_version(expected: i64, found: i64) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("expected version {expected}, found {found}")) }
}

/// Credits, debits and the number of entries.
fn same_totals(expected: (i64, i64, i64), found: (i64, i64, i64)) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    let text = |(credits, debits, entries): (i64, i64, i64)| {
        let (credits, debits) = (money_text(i128::from(credits)), money_text(i128::from(debits)));
        format!("credits {credits}, debits {debits} in {entries} entries")
    };
    Err(format!("expected {}, found {}", text(expected), text(found)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(value: &str) -> Option<String> {
        next_page(&HeaderMap::from_iter([(LINK, value.parse().expect("a header value"))]))
    }

    #[test]
    fn the_next_page_is_the_link_that_says_so() {
        assert_eq!(link(r#"</wallets?limit=2&cursor=b>; rel="next""#).as_deref(), Some("/wallets?limit=2&cursor=b"));
        assert_eq!(
            link(r#"</wallets>; rel="first", </wallets?cursor=b>; rel="next""#).as_deref(),
            Some("/wallets?cursor=b")
        );
        assert_eq!(link(r#"</wallets>; rel="first""#), None);
        assert_eq!(link("nonsense"), None);
    }

    #[test]
    fn an_amount_is_read_as_the_number_that_it_is() {
        let minor = |json: &'static str| minor_units(serde_json::from_str(json).expect("JSON"));
        assert_eq!(minor("900.1"), Ok(90_010));
        assert!(minor("900.0000000000001").is_err(), "the earlier system's floats");
        assert!(minor(r#""900.10""#).is_err(), "text is not a number");
        assert!(minor("null").is_err());
    }
}
