//! A row that a rebuild would change, in the words of whoever has to decide about it.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::money;
use crate::postgres::{DifferingRow, RebuiltTable};

/// Columns that hold minor units of the row's currency.
const MONEY: [&str; 3] = ["amount", "balance", "balance_after"];

/// A row that is not what the log says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// The wallet, or the ledger's account.
    pub wallet: String,
    /// Which row, by its key.
    pub row: String,
    /// What differs in it.
    pub changes: Vec<Change>,
}

/// A value that a rebuild would change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// The column.
    pub column: String,
    /// What the live table has; `None` where it has no such row, or nothing there.
    pub live: Option<String>,
    /// What the log makes of it; `None` where it makes no such row, or nothing there.
    pub rebuilt: Option<String>,
}

/// The difference between a row and what it is rebuilt as.
pub(super) fn difference(table: &RebuiltTable, row: &DifferingRow) -> Difference {
    let (live, rebuilt) = (columns(row.live.as_deref()), columns(row.rebuilt.as_deref()));
    let of_either = |name: &str| text(&live, name).or_else(|| text(&rebuilt, name)).unwrap_or_default();
    let named = |name: &&str| format!("{name} {}", of_either(name));
    let names: BTreeSet<&String> = live.keys().chain(rebuilt.keys()).collect();
    let changes = names.into_iter().filter(|name| live.get(*name) != rebuilt.get(*name)).map(|name| Change {
        column: name.clone(),
        live: text(&live, name),
        rebuilt: text(&rebuilt, name),
    });
    Difference {
        wallet: of_either(table.wallet),
        row: table.key.iter().map(named).collect::<Vec<_>>().join(", "),
        changes: changes.filter(|change| change.live.is_some() || change.rebuilt.is_some()).collect(),
    }
}

/// PostgreSQL made this JSON of a row.
fn columns(row: Option<&str>) -> Map<String, Value> {
    row.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

fn text(row: &Map<String, Value>, name: &str) -> Option<String> {
    let value = row.get(name)?;
    if MONEY.contains(&name) {
        let code = row.get("currency").and_then(Value::as_str).unwrap_or_default();
        return Some(money::named(value.as_i64()?, code));
    }
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::projection::ledger::LEDGER_TABLE;

    fn row(live: Option<&str>, rebuilt: Option<&str>) -> Difference {
        difference(&LEDGER_TABLE, &DifferingRow { live: live.map(str::to_owned), rebuilt: rebuilt.map(str::to_owned) })
    }

    const LIVE: &str = r#"{"position": 7, "leg": 0, "account": "wallet/alice", "currency": "USD", "amount": -1234,
                           "balance_after": 9000, "description": null}"#;

    #[test]
    fn only_what_differs_is_shown_and_money_with_its_digits() {
        let rebuilt = LIVE.replace("9000", "8766").replace("null", "\"tea\"");
        let found = row(Some(LIVE), Some(&rebuilt));
        assert_eq!((found.wallet.as_str(), found.row.as_str()), ("wallet/alice", "position 7, leg 0"));
        let change = |column: &str, live: Option<&str>, rebuilt: &str| Change {
            column: column.to_owned(),
            live: live.map(str::to_owned),
            rebuilt: Some(rebuilt.to_owned()),
        };
        let expected = [change("balance_after", Some("90.00 USD"), "87.66 USD"), change("description", None, "tea")];
        assert_eq!(found.changes, expected);
    }

    #[test]
    fn a_row_that_is_missing_on_one_side_is_shown_whole() {
        let found = row(None, Some(LIVE));
        assert_eq!(found.wallet, "wallet/alice");
        assert!(found.changes.iter().all(|change| change.live.is_none() && change.rebuilt.is_some()));
        assert!(found.changes.iter().any(|change| change.rebuilt.as_deref() == Some("-12.34 USD")));
        assert_eq!(found.changes.len(), 6, "what is nothing on both sides is no change: {found:?}");
    }
}
