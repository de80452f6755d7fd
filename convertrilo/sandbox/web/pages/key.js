"use strict";
// Keeps the API key in this tab only; it is sent only in a header.

const keyInput = document.getElementById("key");
keyInput.value = sessionStorage.getItem("key") || "";
keyInput.addEventListener("input", () => sessionStorage.setItem("key", keyInput.value.trim()));
document.getElementById("credentials").addEventListener("submit", (event) => event.preventDefault());

function apiKey() {
  return keyInput.value.trim();
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}
