//! Bodies of commands: strict JSON, each field taken as it was written and then read in words that name it.
//!
//! Fields are kept as raw text first. So an amount is read from its own digits and never passes through a float, and a
//! wrong type is told with the field's name, what it should be and what it was.

use serde::{Deserialize, Deserializer};
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::http::error::ApiError;
use crate::money::{Amount, Currency};
use crate::wallet::{Command, Description, OwnerId, WalletId};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CreateBody<'a> {
    #[serde(borrow, default, deserialize_with = "as_written")]
    wallet_id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "as_written")]
    owner_id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "as_written")]
    initial_balance: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "as_written")]
    currency: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MovementBody<'a> {
    #[serde(borrow, default, deserialize_with = "as_written")]
    amount: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "as_written")]
    description: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TransferBody<'a> {
    #[serde(borrow, default, deserialize_with = "as_written")]
    to_wallet_id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "as_written")]
    amount: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "as_written")]
    description: Option<&'a RawValue>,
}

/// A field that is there, `null` included: serde by itself would take `null` for a field that is not there.
fn as_written<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// The command in the body of `POST /wallets`.
pub(super) fn create(body: &[u8]) -> Result<Command, ApiError> {
    let body: CreateBody<'_> = object(body)?;
    let wallet_id = WalletId::new(required_text("walletId", body.wallet_id)?)?;
    let owner_id = OwnerId::new(required_text("ownerId", body.owner_id)?)?;
    let currency = match optional_text("currency", body.currency)? {
        Some(code) => Currency::from_code(&code)?,
        None => Currency::USD,
    };
    let initial_balance = match body.initial_balance {
        Some(written) => {
            let text = amount_text("initialBalance", Some(written))?;
            Amount::parse(&text, currency)
                .map_err(|error| ApiError::invalid_amount(format!("initialBalance: {error}")))?
        }
        None => Amount::ZERO,
    };
    Ok(Command::Create { wallet_id, owner_id, currency, initial_balance })
}

/// The command in the body of `POST /wallets/{id}/credit`.
pub(super) fn credit(wallet_id: WalletId, body: &[u8]) -> Result<Command, ApiError> {
    let (amount, description) = movement(body)?;
    Ok(Command::Credit { wallet_id, amount, description })
}

/// The command in the body of `POST /wallets/{id}/debit`.
pub(super) fn debit(wallet_id: WalletId, body: &[u8]) -> Result<Command, ApiError> {
    let (amount, description) = movement(body)?;
    Ok(Command::Debit { wallet_id, amount, description })
}

/// The command in the body of `POST /wallets/{id}/transfer`.
pub(super) fn transfer(wallet_id: WalletId, body: &[u8]) -> Result<Command, ApiError> {
    let body: TransferBody<'_> = object(body)?;
    let to_wallet_id = WalletId::for_field("toWalletId", required_text("toWalletId", body.to_wallet_id)?)?;
    let amount = amount_text("amount", body.amount)?;
    let description = description(body.description)?;
    Ok(Command::Transfer { wallet_id, to_wallet_id, amount, description })
}

fn movement(body: &[u8]) -> Result<(String, Option<Description>), ApiError> {
    let body: MovementBody<'_> = object(body)?;
    Ok((amount_text("amount", body.amount)?, description(body.description)?))
}

/// Reads a body that is one JSON object: no other fields, none twice.
fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    let text = std::str::from_utf8(body).map_err(|_| ApiError::validation("the body is not UTF-8 text"))?;
    let text = text.trim_ascii_start();
    match text.bytes().next() {
        Some(b'{') => {}
        None => return Err(ApiError::validation("the body is empty; expected a JSON object")),
        // serde would take an array for an object, field by field.
        Some(b'[') => return Err(ApiError::validation("expected a JSON object as the body, found an array")),
        Some(_) => return Err(ApiError::validation("the body is not a JSON object")),
    }
    serde_json::from_str(text).map_err(|error| match error.classify() {
        // Says which field, and which ones there are.
        Category::Data => ApiError::validation(error.to_string()),
        Category::Io | Category::Syntax | Category::Eof => {
            ApiError::validation(format!("the body is not valid JSON: {error}"))
        }
    })
}

/// What a JSON value is, in words. It is valid JSON, so its first byte tells.
fn kind(value: &RawValue) -> &'static str {
    match value.get().as_bytes().first() {
        Some(b'"') => "text",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

/// The text of a JSON string; `None` where it is none, or no Unicode (half a surrogate pair).
fn string(value: &RawValue) -> Option<String> {
    if value.get().starts_with('"') { serde_json::from_str(value.get()).ok() } else { None }
}

fn text(field: &str, value: &RawValue) -> Result<String, ApiError> {
    string(value).ok_or_else(|| match kind(value) {
        "text" => ApiError::validation(format!("{field}: the text is not valid Unicode")),
        found => ApiError::validation(format!("{field}: expected text, found {found}")),
    })
}

fn required_text(field: &str, value: Option<&RawValue>) -> Result<String, ApiError> {
    match value {
        Some(value) => text(field, value),
        None => Err(ApiError::validation(format!("{field} is missing; expected text"))),
    }
}

/// `null` counts as not there: clients that always send every field write it so.
fn optional_text(field: &str, value: Option<&RawValue>) -> Result<Option<String>, ApiError> {
    value.filter(|value| !is_null(value)).map(|value| text(field, value)).transpose()
}

fn description(value: Option<&RawValue>) -> Result<Option<Description>, ApiError> {
    Ok(optional_text("description", value)?.map(Description::new).transpose()?)
}

/// The digits of an amount as they were written, as a number or as text. `null` is no amount, and neither is nothing.
fn amount_text(field: &str, value: Option<&RawValue>) -> Result<String, ApiError> {
    let Some(value) = value else {
        return Err(ApiError::invalid_amount(format!("{field} is missing; expected a number or decimal text")));
    };
    match kind(value) {
        "a number" => Ok(value.get().to_owned()),
        "text" => {
            string(value).ok_or_else(|| ApiError::invalid_amount(format!("{field}: expected a number or decimal text")))
        }
        found => Err(ApiError::invalid_amount(format!("{field}: expected a number or decimal text, found {found}"))),
    }
}
