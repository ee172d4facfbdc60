// Keyboard, time, drafts, and a verdict that survives a lost connection: it is kept here until the server has it on disk.
"use strict";
const work = document.getElementById("work"), status_ = document.getElementById("status"), help = document.getElementById("help");
const prefix = work.dataset.prefix, csrf = work.dataset.csrf, store = "jpo:" + prefix + ":" + work.dataset.name + ":";
let busy = false, since = performance.now(), away = 0, hiddenAt = null, written = localStorage.getItem("jpo:written") === "1";

const form = () => document.getElementById("answer");
const say = (text) => { status_.textContent = text; };
const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

async function post(path, body) {
    for (let pause = 0.5; ; pause = Math.min(2 * pause, 10)) {
        let reply = null;
        try {
            reply = await fetch(prefix + path, {
                method: "POST", credentials: "same-origin", body: JSON.stringify(body),
                headers: {"content-type": "application/json", "x-csrf-token": csrf},
            });
        } catch {
            say("No connection. Your choice is kept here and sent as soon as the server answers.");
        }
        if (reply && reply.ok) { say(""); return reply.json(); }
        if (reply && (reply.status === 401 || reply.status === 403)) { say("Please enter again."); location.assign(prefix + "/"); throw new Error("session"); }
        if (reply && reply.status < 500 && reply.status !== 429) throw new Error(await reply.text());
        if (reply) say("The server is busy; trying again.");
        await wait(pause);
    }
}

function begin(html) {
    if (html !== undefined) work.innerHTML = html;
    since = performance.now(); away = 0;
    if (work.querySelector("[data-waiting]")) setTimeout(() => location.reload(), 2000);
    const open = form();
    if (!open) { work.querySelector(".finished").focus(); return; }
    const draft = JSON.parse(localStorage.getItem(store + "draft") || "null");
    if (draft && draft.showing === Number(open.dataset.showing)) { open.rationale.value = draft.rationale; open.tags.value = draft.tags; }
    open.addEventListener("input", () => localStorage.setItem(store + "draft", JSON.stringify({
        showing: Number(open.dataset.showing), rationale: open.rationale.value, tags: open.tags.value })));
    open.addEventListener("submit", (event) => event.preventDefault()); // Enter behind the tags chooses nothing
    asWritten();
    for (const text of open.querySelectorAll(".text")) fold(text);
    if (html !== undefined) { window.scrollTo(0, 0); open.focus({preventScroll: true}); } // a screen reader goes on with it
}

function asWritten() {
    for (const text of document.querySelectorAll("[data-shown]")) text.hidden = written;
    for (const text of document.querySelectorAll("[data-written]")) text.hidden = !written;
}

function fold(text) { // a long text opens by a button; until then its beginning is seen
    if (text.hidden || text.dataset.fold || text.scrollHeight < 420) return;
    text.dataset.fold = "1";
    text.classList.add("folded");
    const button = document.createElement("button");
    button.type = "button"; button.className = "fold"; button.textContent = "Show all";
    button.addEventListener("click", () => {
        const folded = text.classList.toggle("folded");
        text.classList.toggle("unfolded", !folded);
        button.textContent = folded ? "Show all" : "Show less";
    });
    text.after(button);
}

async function send(pending) {
    busy = true; work.setAttribute("aria-busy", "true");
    localStorage.setItem(store + "pending", JSON.stringify(pending));
    try {
        const reply = await post("/verdict", pending);
        localStorage.removeItem(store + "pending"); localStorage.removeItem(store + "draft");
        begin(reply.html);
    } catch (error) {
        if (error.message !== "session") { localStorage.removeItem(store + "pending"); say(error.message); }
    } finally {
        busy = false; work.removeAttribute("aria-busy");
    }
}

function choose(verdict) {
    const open = form();
    if (!open || busy) return;
    send({
        showing: Number(open.dataset.showing), verdict, rationale: open.rationale.value.trim(),
        tags: open.tags.value.split(",").map((tag) => tag.trim()).filter(Boolean),
        seconds: Math.max(0, performance.now() - since - away) / 1000,
    });
}

async function undo() {
    if (busy) return;
    busy = true; work.setAttribute("aria-busy", "true");
    try {
        const reply = await post("/undo", {});
        begin(reply.html);
        say(reply.kept ? "Your last choice is taken back: choose again." : "There is nothing to take back.");
    } catch (error) {
        if (error.message !== "session") say(error.message);
    } finally {
        busy = false; work.removeAttribute("aria-busy");
    }
}

const KEYS = {ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", ArrowUp: "equal", 3: "equal", ArrowDown: "skip", 4: "skip"};
document.addEventListener("keydown", (event) => {
    const typing = /^(TEXTAREA|INPUT)$/.test(event.target.tagName);
    if (event.key === "Escape" && typing) { event.target.blur(); return; }
    if (typing || help.open || event.altKey || event.metaKey || event.repeat) return;
    if (event.key === "u" || (event.ctrlKey && event.key === "z")) { event.preventDefault(); undo(); return; }
    if (event.ctrlKey) return;
    if (event.key in KEYS) { event.preventDefault(); choose(KEYS[event.key]); }
    else if (event.key === "?") help.showModal();
    else if (event.key === "r" && form()) { event.preventDefault(); form().rationale.focus(); }
    else if (event.key === "m") {
        written = !written; localStorage.setItem("jpo:written", written ? "1" : "0"); asWritten();
        for (const text of form() ? form().querySelectorAll(".text") : []) fold(text);
    }
});
document.addEventListener("click", (event) => {
    const chosen = event.target.closest(".choice");
    if (chosen) choose(chosen.value);
    else if (event.target.closest("[data-undo]")) undo();
});
document.getElementById("open-help").addEventListener("click", () => help.showModal());
document.addEventListener("visibilitychange", () => { // time with the page out of sight does not count
    if (document.hidden) hiddenAt = performance.now();
    else if (hiddenAt !== null) { away += performance.now() - hiddenAt; hiddenAt = null; }
});

begin();
const left = JSON.parse(localStorage.getItem(store + "pending") || "null"); // of a page that was closed before its verdict arrived
if (left) send(left);
