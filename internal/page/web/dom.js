// Making and changing elements. Text is only ever set as text.

export const $ = id => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// text changes an element's text if it is another one, so that nothing is drawn or read out again that did not change.
export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

export function attribute(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

// keyed makes the children of an element those of the items, in their order. What is there is kept.
export function keyed(parent, items, keyOf, create, update) {
  const known = new Map();
  for (const child of parent.children) known.set(child.dataset.key, child);
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let child = known.get(key);
    known.delete(key);
    if (!child) {
      child = create(item);
      child.dataset.key = key;
    }
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
    update(child, item);
  }
  for (const child of known.values()) child.remove();
}

// choosing lets arrow keys, Home, End and clicks choose one of a listbox's options. step gives how far a key goes.
export function choosing(box, horizontal, choose) {
  const options = () => [...box.children];
  const go = option => { if (option) choose(option.dataset.key); };
  box.addEventListener("click", event => go(event.target.closest("[role=option]")));
  box.addEventListener("keydown", event => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const all = options(), now = all.findIndex(o => o.getAttribute("aria-selected") === "true");
    const next = { [horizontal ? "ArrowLeft" : "ArrowUp"]: now - 1, [horizontal ? "ArrowRight" : "ArrowDown"]: now + 1, PageUp: now - 10, PageDown: now + 10, Home: 0, End: all.length - 1 }[event.key];
    if (next === undefined || all.length === 0) return;
    event.preventDefault();
    go(all[Math.min(Math.max(next, 0), all.length - 1)]);
  });
}

// selected marks one option as the chosen one.
export function selected(box, key) {
  let active = "";
  for (const option of box.children) {
    const is = option.dataset.key === key;
    attribute(option, "aria-selected", is);
    if (is) active = option.id;
  }
  if (active) attribute(box, "aria-activedescendant", active);
  else box.removeAttribute("aria-activedescendant");
}
