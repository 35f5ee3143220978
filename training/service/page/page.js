"use strict";
// The page of ./run.sh --serve. No library, and nothing from elsewhere; texts of others are only ever set as text.
const CHINESE = {
  title: "微调聊天模型", runs: "运行", new: "新的运行", talk: "对话", none: "还没有运行。", stop: "停止", resume: "继续",
  ask: "与它对话", loss: "训练损失", validation: "验证损失", log: "日志", report: "报告", upload: "本机上的数据文件",
  start: "开始", check: "只检查", model: "模型", beside: "旁边显示基础模型", question: "你的问题", send: "提问",
  forget: "忘掉这段对话", token: "这台服务器的令牌", enter: "确定", step: "步", epoch: "轮", left: "剩余", rate: "学习率",
  base: "基础模型", tuned: "微调后", waiting: "正在载入模型……", checking: "正在检查，需要几十秒……", lost: "连接中断，正在重连",
  ready: "检查通过", uploading: "正在上传……", more: "其他设置", stopped: "正在停止：先写完检查点", cut: "（到长度上限）",
  queued: "排队中", running: "运行中", completed: "完成", interrupted: "已停止", failed: "失败", killed: "被杀掉",
};
const ENGLISH = {
  step: "step", epoch: "epoch", left: "left", rate: "learning rate", base: "base", tuned: "tuned", waiting: "loading the model…",
  checking: "checking; this takes a minute…", lost: "the line is broken; trying again", ready: "ready", uploading: "uploading…",
  more: "More settings", stopped: "stopping, after a checkpoint", cut: "(cut off at the limit)",
  loss: "training loss", validation: "validation loss",
};
const FIRST = ["base_model_name", "new_model_name", "dataset_file", "num_train_epochs", "max_steps", "learning_rate", "per_device_train_batch_size", "r"];
const chinese = (navigator.languages?.[0] ?? navigator.language).toLowerCase().startsWith("zh");
const say = (word) => (chinese ? CHINESE[word] : ENGLISH[word]) ?? word;
const at = (id) => document.getElementById(id);
const make = (tag, text, attributes = {}) => {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};
let fields = [], tasks = [], chosen = null, following = null, points = [], validations = [], history = [], logged = 0;

// ---- asking the server ----------------------------------------------------------------------------------------------

let asking = null;
function askToken() {
  asking ??= new Promise((resolve) => {
    at("token-box").showModal();
    at("token-box").addEventListener("close", () => {
      sessionStorage.setItem("token", at("token").value.trim());
      at("token").value = "";
      asking = null;
      resolve();
    }, { once: true });
  });
  return asking;
}
async function ask(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem("token");
    const headers = { ...(options.headers ?? {}), ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    const answer = await fetch(path, { ...options, headers });
    if (answer.status !== 401) return answer;
    await askToken();
  }
}
const post = (path, body) => ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
function told(problem) {
  const detail = problem?.detail ?? problem?.error?.message;
  return Array.isArray(detail) ? detail.map((one) => one.msg).join("\n") : String(detail ?? problem);
}
function notice(text) {
  at("notice").textContent = text ?? "";
  at("notice").hidden = !text;
}
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    for (let end; (end = rest.indexOf("\n\n")) >= 0; rest = rest.slice(end + 2)) {
      const found = {};
      for (const line of rest.slice(0, end).split("\n")) {
        const cut = line.indexOf(": ");
        if (cut > 0) found[line.slice(0, cut)] = line.slice(cut + 2);
      }
      if (found.data) yield { id: found.id, event: found.event, data: JSON.parse(found.data) };
    }
  }
}

// ---- runs -------------------------------------------------------------------------------------------------------------

async function look() {
  try {
    const answer = await ask("/train/history");
    if (answer.ok) {
      tasks = (await answer.json()).tasks.reverse();
      notice("");
      list();
    }
  } catch {
    notice(say("lost"));
  }
  setTimeout(look, document.hidden ? 15000 : 3000);
}
function list() {
  at("none").hidden = tasks.length > 0;
  const known = new Map([...at("list").children].map((item) => [item.dataset.task, item]));
  tasks.forEach((task, number) => {
    let item = known.get(task.task_id);
    if (!item) {
      item = make("li", undefined, { "data-task": task.task_id });
      const button = make("button", undefined, { type: "button" });
      button.append(make("span"), make("span"), make("small"), make("small"));
      button.addEventListener("click", () => choose(task.task_id, true));
      item.append(button);
    }
    known.delete(task.task_id);
    const [name, state, id, loss] = item.firstChild.children;
    name.textContent = task.model;
    state.textContent = say(task.status) + (task.status === "running" ? ` ${task.progress} %` : "");
    state.className = `state ${task.status}`;
    id.textContent = task.task_id;
    loss.textContent = task.loss === null ? "" : task.loss.toFixed(4);
    item.firstChild.setAttribute("aria-pressed", String(task.task_id === chosen));
    if (at("list").children[number] !== item) at("list").insertBefore(item, at("list").children[number] ?? null);
  });
  known.forEach((item) => item.remove());
  models();
  if (!chosen && tasks.length) choose(tasks[0].task_id, false);
}
function choose(task, focus) {
  chosen = task;
  following?.abort();
  [points, validations, logged] = [[], [], 0];
  at("report-box").open = false;
  at("log").textContent = "";
  at("run").hidden = false;
  draw();
  const known = tasks.find((one) => one.task_id === task);
  if (known) show(known);
  list();
  if (focus) at("run-name").focus();
  follow(task);
}
async function follow(task) {
  const stop = (following = new AbortController());
  let last = null;
  while (!stop.signal.aborted) {
    try {
      const answer = await ask(`/train/events/${task}`, { signal: stop.signal, headers: last ? { "Last-Event-ID": last } : {} });
      if (answer.status === 200) {
        for await (const one of events(answer)) {
          last = one.id ?? last;
          take(one);
        }
      }
    } catch {
      if (stop.signal.aborted) return;
    }
    // After its end a run may be resumed: then there is more.
    await new Promise((done) => setTimeout(done, 3000));
  }
}
let drawing = false;
function take({ event, data }) {
  if (event === "status") {
    // The list of all runs is asked for now and then only: this one is known already.
    tasks = tasks.map((one) => (one.task_id === data.task_id ? { ...one, ...data } : one));
    models();
    show(data);
  }
  if (event === "started" && points.length === 0) validations = [];
  if (event === "step" && data.loss !== null) points.push([data.step, data.loss, data.total]);
  if (event === "evaluation" && data.loss !== null) validations.push([data.at_step, data.loss]);
  if (event === "step") {
    at("run-progress").value = (100 * data.step) / data.total;
    facts({ [say("step")]: `${data.step} / ${data.total}`, [say("epoch")]: data.epoch?.toFixed(2), [say("loss")]: data.loss?.toFixed(4),
      [say("rate")]: data.learning_rate?.toExponential(1), [say("left")]: clock(data.remaining) });
  }
  if (event === "stage") at("run-stage").textContent = data.name;
  if (!drawing) {
    drawing = true;
    requestAnimationFrame(() => { drawing = false; draw(); if (at("log-box").open) log(); });
  }
}
const clock = (seconds) => (seconds === null || seconds === undefined ? "" : `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`);
function facts(told) {
  at("run-facts").replaceChildren(...Object.entries(told).filter(([, value]) => value).map(([name, value]) => {
    const group = make("div");
    group.append(make("dt", name), make("dd", value));
    return group;
  }));
}
function show(task) {
  at("run-name").textContent = `${task.model} · ${task.task_id}`;
  at("run-state").textContent = say(task.status);
  at("run-state").className = `state ${task.status}`;
  at("run-stage").textContent = task.stage ?? "";
  at("run-progress").value = task.progress;
  at("run-error").textContent = task.error ?? "";
  at("run-error").hidden = !task.error;
  const active = ["queued", "running"].includes(task.status);
  at("stop").hidden = !active;
  at("stop").disabled = false;
  at("resume").hidden = active || task.status === "completed";
  at("ask").hidden = task.status !== "completed";
  at("report-box").hidden = !task.has_report;
  facts({ [say("step")]: `${task.step} / ${task.total_steps}`, [say("epoch")]: task.epoch?.toFixed(2), [say("loss")]: task.loss?.toFixed(4),
    [say("validation")]: task.validation_loss?.toFixed(4), [say("left")]: clock(task.eta) });
}
function draw() {
  const svg = at("curve"), name = "http://www.w3.org/2000/svg";
  const add = (tag, attributes, text) => {
    const made = document.createElementNS(name, tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    svg.append(made);
  };
  // As wide as it is shown, at most 640: scaled down to a telephone nobody could read its figures.
  const width = Math.min(640, svg.clientWidth || 640);
  svg.setAttribute("viewBox", `0 0 ${width} 220`);
  svg.replaceChildren();
  const every = [...points, ...validations];
  const total = points.at(-1)?.[2] ?? 1, top = Math.max(...every.map((one) => one[1]), 0.001), left = 48, right = width - 10, bottom = 190;
  const x = (step) => left + ((right - left) * step) / Math.max(total, 1), y = (loss) => bottom - ((bottom - 12) * loss) / top;
  add("line", { class: "axis", x1: left, y1: bottom, x2: right, y2: bottom });
  add("line", { class: "axis", x1: left, y1: 12, x2: left, y2: bottom });
  if (!every.length) return svg.setAttribute("aria-label", "");
  add("text", { x: 4, y: 18 }, top.toPrecision(3));
  add("text", { x: 4, y: bottom }, "0");
  add("text", { x: right - 40, y: bottom + 20 }, String(total));
  const line = (found) => found.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ");
  add("polyline", { class: "train", points: line(points) });
  add("polyline", { class: "valid", points: line(validations) });
  for (const [step, loss] of validations) add("circle", { class: "valid", cx: x(step), cy: y(loss), r: 3 });
  const [first, last] = [points[0], points.at(-1)];
  return svg.setAttribute("aria-label", first ? `${say("loss")}: ${first[1].toFixed(4)} → ${last[1].toFixed(4)}` : "");
}
async function log() {
  const now = Date.now();
  if (!chosen || now - logged < 1000) return;
  logged = now;
  const task = chosen, answer = await ask(`/train/log/${task}`);
  if (!answer.ok || task !== chosen) return;
  const box = at("log"), end = box.scrollTop + box.clientHeight >= box.scrollHeight - 4;
  box.textContent = await answer.text();
  if (end) box.scrollTop = box.scrollHeight;
}
at("log-box").addEventListener("toggle", () => { if (at("log-box").open) log(); });
setInterval(() => { if (at("log-box").open && !document.hidden) log(); }, 3000);
at("report-box").addEventListener("toggle", async () => {
  if (!at("report-box").open) return;
  const answer = await ask(`/train/report/${chosen}`);
  at("report").srcdoc = answer.ok ? await answer.text() : "";
});
for (const what of ["stop", "resume"]) {
  at(what).addEventListener("click", async () => {
    at(what).disabled = true;
    const answer = await ask(`/train/${what}/${chosen}`, { method: "POST" });
    const found = await answer.json();
    if (!answer.ok) return notice(told(found));
    show(found);
    if (what === "stop" && found.status === "running") {
      at("run-stage").textContent = say("stopped");
      at("stop").disabled = true;
    }
    at("resume").disabled = false;
  });
}

// ---- a new run --------------------------------------------------------------------------------------------------------

function field(one) {
  const box = make("div", undefined, { class: "field" }), id = `field-${one.name}`;
  let input;
  if (one.choices.length) {
    input = make("select", undefined, { id });
    for (const choice of one.choices) input.append(make("option", choice, { value: choice }));
    input.value = one.value;
  } else {
    // A text may have several lines, of which an input would drop the ends.
    input = one.kind === "str | None" ? make("textarea", undefined, { id, rows: "2" }) : make("input", undefined, { id, type: "text" });
    input.setAttribute("autocomplete", "off");
    input.setAttribute("spellcheck", "false");
    input.value = one.value;
    if (/^(int|float)/.test(one.kind) && !one.kind.includes("Auto")) input.inputMode = "decimal";
  }
  input.setAttribute("aria-describedby", `${id}-help ${id}-problem`);
  box.append(make("label", one.key, { for: id }), input, make("span", `${one.help} · ${one.allowed}`, { class: "help", id: `${id}-help` }),
    make("p", "", { class: "problem", id: `${id}-problem`, hidden: "" }));
  return box;
}
async function form() {
  const answer = await ask(`/train/settings${chinese ? "?language=zh" : ""}`);
  fields = await answer.json();
  const byName = new Map(fields.map((one) => [one.name, one]));
  at("first").replaceChildren(...FIRST.filter((name) => byName.has(name)).map((name) => field(byName.get(name))));
  const rest = make("details");
  rest.append(make("summary", say("more")));
  for (const section of new Set(fields.map((one) => one.section))) {
    const group = make("fieldset");
    group.append(make("legend", `[${section}]`), ...fields.filter((one) => one.section === section && !FIRST.includes(one.name)).map(field));
    rest.append(group);
  }
  at("rest").replaceChildren(rest);
}
function wanted() {
  // What is as in the server's file is not sent: it is nobody's choice.
  const body = {};
  for (const one of fields) {
    const value = at(`field-${one.name}`).value;
    if (value !== one.value) body[one.name] = value;
  }
  return body;
}
function problems(found) {
  for (const box of document.querySelectorAll("#form .field")) {
    const input = box.querySelector("input, select, textarea"), text = box.querySelector(".problem");
    input.removeAttribute("aria-invalid");
    text.textContent = "";
    text.hidden = true;
  }
  const others = [];
  let first = null;
  for (const one of found) {
    const input = at(`field-${one.field}`);
    if (!one.field || !input) {
      others.push(one.msg);
      continue;
    }
    const text = at(`field-${one.field}-problem`);
    text.textContent += (text.textContent ? "\n" : "") + one.msg;
    text.hidden = false;
    input.setAttribute("aria-invalid", "true");
    const fold = input.closest("details");
    if (fold) fold.open = true;
    first ??= input;
  }
  at("form-problems").textContent = others.join("\n");
  at("form-problems").hidden = others.length === 0;
  first?.focus();
}
async function send(check) {
  problems([]);
  const buttons = document.querySelectorAll("#form button"), plan = at("plan");
  buttons.forEach((button) => (button.disabled = true));
  plan.hidden = !check;
  plan.textContent = check ? say("checking") : "";
  try {
    const answer = await post(`/train${check ? "?check=true" : ""}`, wanted());
    const found = await answer.json();
    if (answer.ok && check) plan.textContent = `${say("ready")}\n${found.plan.join("\n")}`;
    else if (answer.ok) {
      await refresh();
      location.hash = "#runs";
      choose(found.task_id, true);
    } else {
      plan.hidden = true;
      problems(Array.isArray(found.detail) ? found.detail : [{ field: "", msg: told(found) }]);
    }
  } catch {
    plan.hidden = true;
    problems([{ field: "", msg: say("lost") }]);
  } finally {
    buttons.forEach((button) => (button.disabled = false));
  }
}
async function refresh() {
  tasks = (await (await ask("/train/history")).json()).tasks.reverse();
  list();
}
at("form").addEventListener("submit", (event) => { event.preventDefault(); send(false); });
at("check").addEventListener("click", () => send(true));
at("upload").addEventListener("change", async () => {
  const [file] = at("upload").files;
  if (!file) return;
  const body = new FormData();
  body.append("purpose", "fine-tune");
  body.append("file", file);
  problems([{ field: "", msg: say("uploading") }]);
  const answer = await ask("/v1/files", { method: "POST", body }), found = await answer.json();
  problems(answer.ok ? [] : [{ field: "", msg: told(found) }]);
  if (answer.ok) at("field-dataset_file").value = found.path;
});

// ---- talk --------------------------------------------------------------------------------------------------------------

function models() {
  const select = at("model"), done = tasks.filter((task) => task.status === "completed"), before = select.value;
  if (done.map((task) => task.task_id).join() === [...select.options].map((option) => option.value).join()) return;
  select.replaceChildren(...done.map((task) => make("option", `${task.model} · ${task.task_id}`, { value: task.task_id })));
  if (before && done.some((task) => task.task_id === before)) select.value = before;
}
at("ask").addEventListener("click", () => {
  at("model").value = chosen;
  forget();
  location.hash = "#talk";
});
function forget() {
  history = [];
  at("turns").replaceChildren();
}
at("forget").addEventListener("click", forget);
at("model").addEventListener("change", forget);
async function speak(box, messages, base) {
  const text = make("p", say("waiting"));
  box.append(make("strong", say(base ? "base" : "tuned")), text);
  try {
    const answer = await post("/generate", { model_name: at("model").value, messages, stream: true, base });
    if (!answer.ok) return void (text.textContent = told(await answer.json()));
    let whole = "";
    for await (const { event, data } of events(answer)) {
      if (event === "piece") text.textContent = whole += data.text;
      if (event === "error") text.textContent = data.detail;
      if (event === "done") {
        text.textContent = data.text + (data.stopped ? "" : ` ${say("cut")}`);
        return data.text;
      }
    }
  } catch {
    text.textContent = say("lost");
  }
}
at("question-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (!question || !at("model").value) return;
  const button = at("question-form").querySelector("[type=submit]");
  button.disabled = true;
  at("question").value = "";
  const turn = make("div", undefined, { class: "turn" }), answers = make("div", undefined, { class: "answers" });
  turn.append(make("p", question, { class: "asked" }), answers);
  at("turns").append(turn);
  turn.scrollIntoView({ block: "end" });
  const messages = [...history, { role: "user", content: question }], tuned = make("div"), base = make("div");
  if (at("beside").checked) answers.append(base);
  answers.append(tuned);
  const said = await speak(tuned, messages, false);
  if (at("beside").checked) await speak(base, messages, true);
  if (said) history = [...messages, { role: "assistant", content: said }];
  button.disabled = false;
  at("question").focus();
});
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("question-form").requestSubmit();
  }
});

// ---- the whole -----------------------------------------------------------------------------------------------------------

function turn() {
  const wantedPart = ["runs", "new", "talk"].find((name) => location.hash === `#${name}`) ?? "runs";
  for (const name of ["runs", "new", "talk"]) at(name).hidden = name !== wantedPart;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${wantedPart}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  scrollTo(0, 0);
}
if (chinese) {
  document.documentElement.lang = "zh-CN";
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = CHINESE[element.dataset.t];
  document.title = CHINESE.title;
}
addEventListener("hashchange", turn);
addEventListener("resize", draw);
turn();
form().catch(() => notice(say("lost")));
look();
