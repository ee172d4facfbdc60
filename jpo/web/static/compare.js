// Asks both models, shows their tokens as they come, and keeps a comparison with one click.
"use strict";
const at = (id) => document.getElementById(id), work = at("work"), prefix = work.dataset.prefix, csrf = work.dataset.csrf;
const SIDES = ["left", "right"], help = at("help");
let comparison = null, kept = "", stopped = null;

const say = (text) => { at("status").textContent = text; };
const percent = (p) => p >= 0.0995 ? `${Math.round(100 * p)} %` : `${(100 * p).toPrecision(2)} %`;
const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);

function ownClass(mean) { const p = Math.exp(mean); return p > 0.5 ? "c4" : p > 0.2 ? "c3" : p > 0.05 ? "c2" : p > 0.01 ? "c1" : "c0"; }
function changeClass(mean) { return mean > Math.LN2 ? "d4" : mean > 0.1 ? "d3" : mean >= -0.1 ? "d2" : mean >= -Math.LN2 ? "d1" : "d0"; }

function colour() {
    const change = at("colour").value === "change";
    at("legend-own").hidden = change; at("legend-change").hidden = !change;
    for (const piece of document.querySelectorAll(".answer span")) piece.className = change ? piece.dataset.change : piece.dataset.own;
}

function post(path, body, signal) {
    return fetch(prefix + path, {
        method: "POST", credentials: "same-origin", body: JSON.stringify(body), signal,
        headers: {"content-type": "application/json", "x-csrf-token": csrf},
    });
}

async function problem(reply) {
    const text = await reply.text();
    try { return JSON.parse(text).error.message; } catch { return text; }
}

function cell(row, text, head) { const made = document.createElement(head ? "th" : "td"); made.textContent = text; row.append(made); }

function addPiece(name, line) {
    const own = line.scores.reduce((sum, score) => sum + score[0], 0), change = line.scores.reduce((sum, score) => sum + score[1], 0);
    const count = Math.max(1, line.scores.length), text = line.text || (line.finish === "stop" ? "⏹" : "");
    if (!line.scores.length && !text) return;
    const piece = document.createElement("span");
    piece.textContent = text;
    piece.dataset.own = ownClass(own / count); piece.dataset.change = changeClass(change / count);
    piece.className = at("colour").value === "change" ? piece.dataset.change : piece.dataset.own;
    piece.title = `${percent(Math.exp(own))}, log-likelihood ${own.toFixed(2)}, change ${signed(change)}`;
    at(`${name}-answer`).append(piece);
    const row = document.createElement("tr");
    cell(row, text || "(part of a character)", true); cell(row, percent(Math.exp(own))); cell(row, own.toFixed(2)); cell(row, signed(change));
    at(`${name}-numbers`).append(row);
}

function show(line) {
    if (line.error) { say(line.error.message); return; }
    if (line.margin !== null && line.margin !== undefined) {
        at("meter").value = Math.max(-5, Math.min(5, line.margin));
        const side = line.margin > 0 ? "right" : "left";
        at("margin").textContent = Math.abs(line.margin) < 0.005 ? "0.00: the right model holds both for equal" : `${signed(line.margin)}: the right model holds the ${side} side for the better one`;
    }
    if (line.comparison) { comparison = line.comparison; choices(true); say("Which side is better?"); return; }
    if (line.scores === undefined) return;
    const name = SIDES[line.side];
    addPiece(name, line);
    if (line.tokens) at(`${name}-sum`).textContent = `${line.tokens} ${line.tokens === 1 ? "token" : "tokens"}, log-likelihood ${line.logp.toFixed(1)} (${(line.logp / line.tokens).toFixed(2)} a token)${line.finish === "length" ? ", cut at the limit" : ""}`;
}

function choices(on) { for (const button of document.querySelectorAll("[data-verdict]")) button.disabled = !on; }

function begin() {
    comparison = null; kept = ""; choices(false);
    at("result").hidden = false; at("undo").hidden = true; at("kept").textContent = ""; at("margin").textContent = at("left-model").value === at("right-model").value ? "none: both sides are one model" : ""; at("meter").value = 0;
    for (const name of SIDES) {
        at(`${name}-name`).textContent = at(`${name}-model`).value;
        for (const part of ["answer", "numbers"]) at(`${name}-${part}`).replaceChildren();
        at(`${name}-sum`).textContent = "";
    }
    for (const button of document.querySelectorAll("[data-verdict]")) delete button.dataset.before;
}

async function ask() {
    if (stopped) return;
    const text = at("left-text").value, second = at("two").checked ? at("right-text").value : text;
    if (!text.trim() || !second.trim()) { say("Write an instruction first."); return; }
    const number = (id) => Number(at(id).value);
    begin();
    say("Both are answering.");
    stopped = new AbortController();
    at("send").disabled = true; at("stop").hidden = false;
    try {
        const reply = await post("/compare", {
            left: {model: at("left-model").value, instruction: text}, right: {model: at("right-model").value, instruction: second},
            temperature: number("temperature"), top_p: number("top_p"), seed: number("seed"), max_tokens: number("max_tokens"),
        }, stopped.signal);
        if (!reply.ok) { say(await problem(reply)); return; }
        const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
        for (let rest = ""; ;) {
            const {value, done} = await reader.read();
            if (done) break;
            const lines = (rest + value).split("\n");
            rest = lines.pop();
            for (const line of lines) show(JSON.parse(line));
        }
    } catch (error) {
        say(error.name === "AbortError" ? "Stopped." : "No connection to the server.");
    } finally {
        stopped = null; at("send").disabled = false; at("stop").hidden = true;
    }
}

async function keep(verdict) {
    if (!comparison || (verdict === "undo" && !kept)) return;
    try {
        const reply = await post("/keep", {comparison, verdict});
        if (!reply.ok) { say(await problem(reply)); return; }
        kept = (await reply.json()).kept;
    } catch { say("No connection: nothing was written. Click again."); return; }
    for (const button of document.querySelectorAll("[data-verdict]")) {
        if (button.dataset.verdict === kept) button.dataset.before = "1"; else delete button.dataset.before;
    }
    at("undo").hidden = !kept;
    at("kept").textContent = kept ? `Written: the ${kept} side is better.` : "";
    say(kept ? "Kept." : "The record is taken back.");
}

at("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
at("two").addEventListener("change", () => { at("second").hidden = !at("two").checked; });
at("colour").addEventListener("change", colour);
at("stop").addEventListener("click", () => stopped && stopped.abort());
at("undo").addEventListener("click", () => keep("undo"));
at("open-help").addEventListener("click", () => help.showModal());
for (const button of document.querySelectorAll("[data-verdict]")) button.addEventListener("click", () => keep(button.dataset.verdict));
document.addEventListener("keydown", (event) => {
    if (event.ctrlKey && event.key === "Enter") { event.preventDefault(); ask(); return; }
    const typing = /^(TEXTAREA|INPUT|SELECT)$/.test(event.target.tagName);
    if (event.key === "Escape" && typing) { event.target.blur(); return; }
    if (typing || help.open || event.altKey || event.metaKey || event.ctrlKey || event.repeat) return;
    if (event.key === "ArrowLeft" || event.key === "1") { event.preventDefault(); keep("left"); }
    else if (event.key === "ArrowRight" || event.key === "2") { event.preventDefault(); keep("right"); }
    else if (event.key === "u") keep("undo");
    else if (event.key === "?") help.showModal();
});
