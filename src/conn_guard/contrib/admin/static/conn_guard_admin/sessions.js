"use strict";
{
    const KEY = "conn_guard_admin.refresh";
    const live = document.getElementById("conn-guard-live");
    const line = document.getElementById("conn-guard-switch");
    const box = line.querySelector("input");
    const told = line.querySelector("[role=status]");
    const everyMs = 1000 * Number(line.dataset.everySeconds || 5);
    let timer = 0;

    function chosen() {
        return [...live.querySelectorAll(".action-select:checked")].map((each) => each.value);
    }

    function prepare() {
        const toggle = document.getElementById("action-toggle");
        if (toggle) {
            toggle.hidden = false;
        }
    }

    function show(page) {
        const selected = new Set(chosen());
        const focused = live.contains(document.activeElement) ? document.activeElement : null;
        live.replaceChildren(...page.childNodes);
        prepare();
        for (const each of live.querySelectorAll(".action-select")) {
            each.checked = selected.has(each.value);
        }
        // Otherwise the keyboard's place on the page would be lost.
        if (focused) {
            const same = [...live.querySelectorAll(focused.localName)].find((each) =>
                each.name === focused.name && each.value === focused.value && each.href === focused.href);
            same?.focus({ preventScroll: true });
        }
    }

    async function refresh() {
        try {
            const answer = await fetch(location.href, {
                headers: { "X-Conn-Guard-Refresh": "1" },
                signal: AbortSignal.timeout(30000),
            });
            const html = new DOMParser().parseFromString(await answer.text(), "text/html");
            const page = html.getElementById("conn-guard-live");
            if (!box.checked) {
                return;
            }
            if (answer.redirected) {
                told.textContent = "You are logged out: reload the page.";
                return;
            }
            if (page) {
                show(page);
            }
            told.textContent = page ? "" : "No answer; trying again.";
        } catch {
            told.textContent = "No answer; trying again.";
        }
        plan();
    }

    function plan() {
        clearTimeout(timer);
        if (box.checked) {
            timer = setTimeout(() => document.hidden ? plan() : refresh(), everyMs);
        }
    }

    box.addEventListener("change", () => {
        sessionStorage.setItem(KEY, box.checked ? "on" : "");
        told.textContent = "";
        plan();
    });
    live.addEventListener("change", (event) => {
        if (event.target.id === "action-toggle") {
            for (const each of live.querySelectorAll(".action-select")) {
                each.checked = event.target.checked;
            }
        }
    });
    box.checked = sessionStorage.getItem(KEY) === "on";
    line.hidden = false;
    prepare();
    plan();
}
