"use strict";
const at = (id) => document.getElementById(id);
const made = (kind, text, name) => {
  const node = document.createElement(kind);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
};
let models = [], running = null, images = {};

const headers = () => {
  const key = at("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
};
const chosen = () => models.find((model) => model.id === at("prompt").value);
const writes = (model) => model.is_backbone || model.task === "text-generation" || model.task === "chat";
const comparable = (model) => !model.is_backbone && (writes(model) || model.can_compare);

async function failure(response) {
  try { return (await response.json()).error.message; } catch { return `the server answered ${response.status}`; }
}

async function load() {
  const response = await fetch("v1/models", { headers: headers() });
  at("keyed").hidden = response.status !== 401 && !at("key").value;
  if (!response.ok) {
    at("served").textContent = response.status === 401 ? "This server asks for an API key." : await failure(response);
    at("go").disabled = true;
    if (response.status === 401) at("key").focus();
    return;
  }
  models = (await response.json()).data.sort((a, b) => a.is_backbone - b.is_backbone || a.id.localeCompare(b.id));
  const count = models.filter((model) => !model.is_backbone).length;
  at("served").textContent = `${count} ${count === 1 ? "prompt" : "prompts"} on ${models[0]?.backbone ?? "no backbone"}`;
  at("go").disabled = models.length === 0;
  at("find").hidden = count < 12;
  list();
}

function list() {
  const wanted = at("find").value.toLowerCase(), before = at("prompt").value;
  const shown = models.filter((model) => model.id.toLowerCase().includes(wanted)).slice(0, 500);
  at("prompt").replaceChildren(...shown.map((model) => new Option(model.is_backbone ? `${model.id} (backbone)` : model.id, model.id)));
  if (shown.some((model) => model.id === before)) at("prompt").value = before;
  describe();
}

function describe() {
  const model = chosen();
  at("fields").replaceChildren();
  images = {};
  if (!model) { at("about").textContent = "No prompt has this name."; return; }
  const about = [model.task];
  if (model.labels?.length) about.push(`labels ${model.labels.slice(0, 8).join(", ")}${model.labels.length > 8 ? " …" : ""}`);
  if (model.method) about.push(`${model.method}, ${model.virtual_tokens || model.prefix_positions} positions`);
  const score = model.metrics?.test ?? model.metrics?.validation;
  if (score && typeof score.accuracy === "number") about.push(`${model.metrics.test ? "test" : "validation"} accuracy ${(100 * score.accuracy).toFixed(1)} %`);
  at("about").textContent = about.join(" · ");
  for (const field of model.task === "chat" ? ["message"] : model.fields) at("fields").append(model.images ? picture(field) : area(field));
  at("writing").hidden = !writes(model);
  at("beside").hidden = !comparable(model);
}

function area(field) {
  const box = made("p"), name = made("label", field), text = made("textarea");
  text.id = name.htmlFor = `field-${field}`;
  text.dataset.field = field;
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); at("ask").requestSubmit(); }
  });
  box.append(name, text);
  return box;
}

function picture(field) {
  const box = made("div", undefined, "drop"), name = made("label", `${field}: choose an image, drop one, or paste it`);
  const file = made("input"), shown = made("img");
  file.type = "file"; file.accept = "image/png,image/jpeg,image/webp,image/gif,image/bmp";
  file.id = name.htmlFor = `field-${field}`;
  shown.hidden = true;
  const take = (given) => {
    if (!given?.type.startsWith("image/")) return;
    const reader = new FileReader();
    reader.onload = () => { images[field] = reader.result; shown.src = reader.result; shown.alt = given.name; shown.hidden = false; };
    reader.readAsDataURL(given);
  };
  file.addEventListener("change", () => take(file.files[0]));
  for (const kind of ["dragover", "dragleave", "drop"]) box.addEventListener(kind, (event) => {
    event.preventDefault();
    box.classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files[0]);
  });
  document.onpaste = (event) => take([...event.clipboardData.files][0]);
  box.append(name, file, shown);
  return box;
}

function input(model) {
  if (model.images) return { ...images };
  const values = Object.fromEntries([...document.querySelectorAll("#fields textarea")].map((one) => [one.dataset.field, one.value]));
  return model.fields.length === 1 ? Object.values(values)[0] : values;
}

function asked(model, alone) {
  const body = { model: model.id };
  let path = "v1/classify";
  if (model.task === "chat") {
    path = "v1/chat/completions";
    body.messages = [{ role: "user", content: at("field-message").value }];
  } else if (writes(model)) { path = "v1/completions"; body.prompt = input(model); } else body.input = input(model);
  if (writes(model)) {
    body.max_tokens = Number(at("most").value) || 64;
    if (Number(at("heat").value)) body.temperature = Number(at("heat").value);
    body.stream = true;
    body.stream_options = { include_usage: true };
  }
  if (alone) body.without_prompt = true;
  return [path, body];
}

async function ask(place, model, alone, signal) {
  const body = place.querySelector(".body"), numbers = place.querySelector(".numbers");
  body.replaceChildren(made("p", "…", "soft"));
  numbers.textContent = "";
  const [path, asking] = asked(model, alone), since = performance.now();
  try {
    const response = await fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(asking), signal });
    if (!response.ok) throw new Error(await failure(response));
    if (!asking.stream) {
      const answer = await response.json();
      body.replaceChildren(...shown(answer.data[0]));
      numbers.textContent = `${Math.round(performance.now() - since)} ms · ${answer.usage.prompt_tokens} tokens read`;
    } else await stream(response, body, numbers, since);
  } catch (error) {
    body.querySelector(".running")?.classList.remove("running");
    body.append(made("p", error.name === "AbortError" ? "Stopped." : error.message, error.name === "AbortError" ? "soft" : "error"));
    body.querySelector("p.soft:first-child:not(:only-child)")?.remove();
  }
}

async function stream(response, body, numbers, since) {
  const text = made("div", "", "text running"), reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  body.replaceChildren(text);
  let rest = "", first = 0, usage = null;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    rest += value;
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      if (event.usage) usage = event.usage;
      const choice = event.choices?.[0], piece = choice?.text ?? choice?.delta?.content ?? "";
      if (piece && !first) first = performance.now() - since;
      text.textContent += piece;
    }
  }
  text.classList.remove("running");
  const all = performance.now() - since, told = [`first text after ${Math.round(first || all)} ms`, `${Math.round(all)} ms`];
  if (usage) told.push(`${usage.prompt_tokens} tokens read, ${usage.completion_tokens} written`, `${Math.round((1000 * usage.completion_tokens) / all)} tokens/s`);
  numbers.textContent = told.join(" · ");
}

function shown(answer) {
  if (answer.probabilities) {
    const bars = made("ul", undefined, "bars"), svg = "http://www.w3.org/2000/svg";
    for (const [label, share] of Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]).slice(0, 50)) {
      const line = made("li"), track = made("div", undefined, "track"), drawn = document.createElementNS(svg, "svg"), bar = document.createElementNS(svg, "rect");
      drawn.setAttribute("aria-hidden", "true");
      bar.setAttribute("width", `${100 * share}%`); bar.setAttribute("height", "100%");
      drawn.append(bar); track.append(drawn);
      line.append(made("span", label), made("span", `${(100 * share).toFixed(1)} %`, "share"), track);
      bars.append(line);
    }
    return [made("p", answer.label ?? answer.labels?.join(", ") ?? "", "label"), bars];
  }
  if (answer.tags) { const tags = made("p", undefined, "tags"); tags.append(...answer.tags.map((tag) => made("span", tag))); return [tags]; }
  if (answer.span !== undefined) return [made("p", answer.span || "no answer", "label"), made("p", `probability ${(100 * answer.probability).toFixed(1)} %`, "soft")];
  return [made("p", String(answer.text ?? answer.value), "label")];
}

at("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const model = chosen();
  if (!model || running) return;
  const both = comparable(model) && at("compare").checked;
  running = new AbortController();
  at("go").disabled = true; at("stop").hidden = false;
  at("without").hidden = !both;
  at("answers").classList.toggle("two", both);
  await ask(at("with"), model, false, running.signal);
  if (both && !running.signal.aborted) await ask(at("without"), model, true, running.signal);
  running = null;
  at("go").disabled = false; at("stop").hidden = true;
});
at("stop").addEventListener("click", () => running?.abort());
at("prompt").addEventListener("change", describe);
at("find").addEventListener("input", list);
at("unlock").addEventListener("click", load);
at("key").addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); load(); } });

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
function curl(model) {
  const [path, body] = asked(model, false);
  const lines = [`curl ${quoted(new URL(path, location.href).href)}`, `-H 'Content-Type: application/json'`];
  if (at("key").value) lines.push(`-H "Authorization: Bearer $SOFTPROMPT_KEY"`);
  if (body.stream) lines[0] = lines[0].replace("curl ", "curl --no-buffer ");
  return [...lines, `-d ${quoted(JSON.stringify(body))}`].join(" \\\n  ");
}
function python(model) {
  const [path, body] = asked(model, false);
  const json = `json.loads(${JSON.stringify(JSON.stringify(body))})`;
  const base = new URL("v1", location.href).href;
  const key = at("key").value ? `os.environ["SOFTPROMPT_KEY"]` : `"none"`;
  const head = [`import json`, ...(at("key").value ? [`import os`] : [])];
  if (path === "v1/classify") {
    return [...head, `import urllib.request`, ``, `request = urllib.request.Request(`, `    ${JSON.stringify(`${base}/classify`)},`, `    json.dumps(${json}).encode(),`,
      `    {"Content-Type": "application/json", "Authorization": "Bearer " + ${key}},`, `)`, `print(json.load(urllib.request.urlopen(request))["data"][0])`].join("\n");
  }
  const call = path === "v1/completions" ? "completions" : "chat.completions";
  const piece = path === "v1/completions" ? "event.choices[0].text" : `event.choices[0].delta.content or ""`;
  return [...head, ``, `from openai import OpenAI`, ``, `client = OpenAI(base_url=${JSON.stringify(base)}, api_key=${key})`, `for event in client.${call}.create(**${json}):`,
    `    if event.choices:`, `        print(${piece}, end="", flush=True)`].join("\n");
}
for (const [id, written] of [["curl", curl], ["python", python]]) at(id).addEventListener("click", async () => {
  const model = chosen();
  if (!model) return;
  const text = written(model);
  try { await navigator.clipboard.writeText(text); at("copied").textContent = "Copied."; } catch { show(text); }
});
function show(text) {
  // Without a safe origin a page may not write to the clipboard: the text is shown, selected.
  const box = at("with").querySelector(".body"), area = made("textarea");
  area.value = text; area.readOnly = true; area.setAttribute("aria-label", "To copy");
  box.replaceChildren(area);
  area.select();
  at("copied").textContent = "Copy the selected text.";
}
load();
